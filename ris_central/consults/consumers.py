"""The desk's socket."""

from typing import Any

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability
from ris_central.catalogue.live import LiveConsumer
from ris_central.consults.actions import DESK_GROUP
from ris_central.consults.models import Consult


class DeskConsumer(LiveConsumer):
    """Sends ``{"consults": [keys]}``."""

    group = DESK_GROUP
    name = "consults"
    capabilities = (Capability.OPINE, Capability.CONSULT)

    async def consult_changed(self, message: dict[str, Any]) -> None:
        """A consult changed."""
        self.collect(message["consult"])

    def visible(self, user: User, keys: set[int]) -> list[int]:
        """Of the user's sites, concluded ones included: the desk must drop those too."""
        mine = Consult.objects.filter(pk__in=keys)
        asked = mine.filter(requesting_site__memberships__user=user) | mine.filter(
            reference_site__memberships__user=user
        )
        return sorted(set(asked.values_list("pk", flat=True)))
