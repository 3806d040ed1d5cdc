"""People of the region."""

from django.urls import path

from ris_central.organizations import views

urlpatterns = [
    path("", views.people, name="people"),
    path("new/", views.person_new, name="person_new"),
    path("<int:pk>/", views.person, name="person"),
    path("<int:pk>/password/", views.person_password, name="person_password"),
    path("<int:pk>/active/", views.person_active, name="person_active"),
]
