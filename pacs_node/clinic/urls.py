"""Pages of the node."""

from django.urls import path

from pacs_node.clinic import views

urlpatterns = [
    path("", views.studies, name="studies"),
    path("login/", views.login_page, name="login"),
    path("logout/", views.logout_page, name="logout"),
    path("state/", views.state, name="state"),
    path("devices/", views.devices, name="devices"),
    path("refused/", views.refused, name="refused"),
    path("refused/<int:refusal>/admit/", views.admit, name="admit"),
    path("worklist/", views.worklist, name="worklist"),
    path("audit/", views.audit_trail, name="audit"),
    path("healthz", views.healthz, name="healthz"),
    path("metrics", views.metrics, name="metrics"),
]
