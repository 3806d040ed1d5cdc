"""Sites and their state."""

from django.urls import path

from ris_central.monitoring import views

urlpatterns = [
    path("", views.sites, name="sites"),
    path("new/", views.site_new, name="site_new"),
    path("<int:pk>/", views.site, name="site"),
    path("<int:pk>/join-code/", views.join_code, name="join_code"),
    path("refused/<int:pk>/admit/", views.admit, name="admit"),
]
