"""Users, their role, and API tokens. Sites are not known here (see organizations)."""

from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils.translation import gettext_lazy as _


class Role(models.TextChoices):
    """What a person does in the region. One role a user; ``administrator`` is the regional one."""

    RADIOLOGIST = "radiologist", _("Radiologist")
    EXPERT = "expert", _("Expert of the reference centre")
    REGISTRAR = "registrar", _("Registrar")
    CLERK = "clerk", _("Disc clerk")
    ENGINEER = "engineer", _("Engineer")
    ADMINISTRATOR = "administrator", _("Regional administrator")


class User(AbstractUser):
    """A person (or a service) that logs in."""

    role = models.CharField(max_length=16, choices=Role)
    language = models.CharField(max_length=2, default="ru", choices=[("ru", "Русский"), ("en", "English")])
    position = models.CharField(max_length=128, blank=True)
    must_change_password = models.BooleanField(default=False)

    @property
    def full_name(self) -> str:
        """Family name first, as clinics write it; the login name when no name is known."""
        return f"{self.last_name} {self.first_name}".strip() or self.username

    def __str__(self) -> str:
        return self.full_name


class ApiToken(models.Model):
    """A token for programs. Only its SHA-256 is kept."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_tokens")
    name = models.CharField(max_length=64)
    digest = models.CharField(max_length=64, unique=True)
    created_at = models.DateTimeField(auto_now_add=True)
    last_used_at = models.DateTimeField(null=True)
    revoked_at = models.DateTimeField(null=True)
