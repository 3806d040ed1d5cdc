"""Django app organizations."""

from django.apps import AppConfig


class OrganizationsConfig(AppConfig):
    """Sites and who works there."""

    name = "ris_central.organizations"
    label = "organizations"

    def ready(self) -> None:
        """Hear of account changes, to tell who keeps lists of a site's people."""
        from ris_central.accounts.listeners import on_account_changed  # noqa: PLC0415  models exist only now
        from ris_central.organizations.actions import account_changed  # noqa: PLC0415

        on_account_changed(account_changed)
