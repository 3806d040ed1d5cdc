"""The disc desk's socket."""

from typing import Any

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability
from ris_central.catalogue.live import LiveConsumer
from ris_central.discs import queries
from ris_central.discs.actions import DISCS_GROUP


class DiscsConsumer(LiveConsumer):
    """Sends ``{"discs": [keys]}``."""

    group = DISCS_GROUP
    name = "discs"
    capabilities = (Capability.BURN,)

    async def disc_changed(self, message: dict[str, Any]) -> None:
        """A job moved."""
        self.collect(message["disc"])

    def visible(self, user: User, keys: set[int]) -> list[int]:
        """Through ``visible_to``."""
        return list(queries.visible_to(user).filter(pk__in=keys).order_by("pk").values_list("pk", flat=True))
