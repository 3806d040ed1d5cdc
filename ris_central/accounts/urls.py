"""Pages of one's own account."""

from django.urls import path

from ris_central.accounts import views

urlpatterns = [
    path("login/", views.Login.as_view(), name="login"),
    path("logout/", views.Logout.as_view(), name="logout"),
    path("language/", views.language, name="set_language"),
    path("password/", views.password_change, name="password_change"),
    path("home/", views.home, name="home"),
]
