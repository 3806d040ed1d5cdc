"""Registration, drafts, what waits."""

from django.urls import path

from pacs_node.offline import views

urlpatterns = [
    path("registration/", views.day, name="registration"),
    path("registration/new/", views.new, name="registration_new"),
    path("registration/patients/", views.patients, name="registration_patients"),
    path("registration/<int:key>/", views.step, name="registration_step"),
    path("registration/<int:key>/cancel/", views.cancel, name="registration_cancel"),
    path("drafts/<int:key>/", views.draft, name="draft"),
    path("drafts/<int:key>/save/", views.draft_save, name="draft_save"),
    path("waiting/", views.waiting, name="waiting"),
]
