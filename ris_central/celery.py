"""The Celery application of the centre.

Tasks are the ``@shared_task`` functions of each app's ``tasks.py``. A task that shall run by the clock is named there
too, in ``PERIODIC``: ``{"unique-name": {"task": "app.task", "schedule": seconds or crontab, "options": {…}}}``.
"""

import importlib.util
from importlib import import_module
from typing import Any

import django
from celery import Celery
from celery.signals import setup_logging
from django.apps import apps
from django.conf import settings

from ris_central.logs import configure

django.setup()
app = Celery("regis")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def periodic() -> dict[str, Any]:
    """Every ``PERIODIC`` entry of the project's apps."""
    found: dict[str, Any] = {}
    for config in apps.get_app_configs():
        if config.name.startswith("ris_central.") and importlib.util.find_spec(f"{config.name}.tasks"):
            for name, entry in getattr(import_module(f"{config.name}.tasks"), "PERIODIC", {}).items():
                if name in found:
                    raise RuntimeError(f"Two periodic tasks are called {name}.")
                found[name] = entry
    return found


app.conf.beat_schedule = periodic()
app.conf.beat_schedule_filename = str(settings.CONFIG.data_dir / "celerybeat-schedule")
app.conf.worker_hijack_root_logger = False


@setup_logging.connect
def _logs(**kwargs: Any) -> None:
    configure()
