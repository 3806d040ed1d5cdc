"""The worklist's socket."""

from typing import Any

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability
from ris_central.catalogue import queries
from ris_central.catalogue.actions.announcing import WORKLIST_GROUP
from ris_central.catalogue.live import LiveConsumer


class WorklistConsumer(LiveConsumer):
    """Sends ``{"studies": [keys]}``; the page fetches the rows it shows again."""

    group = WORKLIST_GROUP
    name = "studies"
    capabilities = (Capability.SEE_STUDIES,)

    async def study_changed(self, message: dict[str, Any]) -> None:
        """Studies changed."""
        self.collect(*message["studies"])

    def visible(self, user: User, keys: set[int]) -> list[int]:
        """Through ``visible_to``."""
        return list(queries.visible_to(user).filter(pk__in=keys).order_by("pk").values_list("pk", flat=True))
