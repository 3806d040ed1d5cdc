"""Django app audit."""

from django.apps import AppConfig
from django.contrib.auth import signals


class AuditConfig(AppConfig):
    """The hash-chained trail of who saw, changed or was refused what."""

    name = "ris_central.audit"
    label = "audit"

    def ready(self) -> None:
        """Hear of logins and of account changes."""
        from ris_central.accounts.listeners import on_account_changed  # noqa: PLC0415  models exist only now
        from ris_central.audit import listeners  # noqa: PLC0415

        signals.user_logged_in.connect(listeners.logged_in)
        signals.user_logged_out.connect(listeners.logged_out)
        signals.user_login_failed.connect(listeners.login_failed)
        on_account_changed(listeners.account_changed)
