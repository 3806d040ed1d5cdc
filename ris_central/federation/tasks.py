"""What the registry of nodes does by the clock."""

from celery import shared_task

from ris_central.federation import intake, pruning

PERIODIC = {
    "federation-apply-understood": {"task": "federation.apply_understood", "schedule": 60.0},
    "federation-prune": {"task": "federation.prune", "schedule": 6 * 3600.0},
}


@shared_task(name="federation.apply_understood")
def apply_understood() -> None:
    """Apply what came from nodes a version ahead, once this program understands it."""
    intake.apply_what_is_understood_now()


@shared_task(name="federation.prune")
def prune() -> None:
    """Forget what was taken and applied long ago."""
    pruning.prune()
