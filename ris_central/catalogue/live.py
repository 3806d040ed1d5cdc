"""A socket that tells open pages which rows changed, filtered by who may see them, at most twice a second."""

import asyncio
from typing import Any, ClassVar

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from ris_central.accounts.models import User
from ris_central.accounts.permissions import Capability, can

_PAUSE = 0.5


class LiveConsumer(AsyncJsonWebsocketConsumer):
    """Sends ``{name: [keys]}``; the page fetches what it shows again. Subclasses say what is live and for whom."""

    group: ClassVar[str]
    name: ClassVar[str]
    capabilities: ClassVar[tuple[Capability, ...]]

    def visible(self, user: User, keys: set[int]) -> list[int]:
        """Those of the keys that this person may see, in one query."""
        raise NotImplementedError

    async def connect(self) -> None:
        """Strangers and people without the capability are turned away."""
        self.changed: set[int] = set()
        self.sender: asyncio.Task[None] | None = None
        user = self.scope.get("user")
        if not isinstance(user, User) or not any(can(user, capability) for capability in self.capabilities):
            await self.close(code=4403)
            return
        self.user = user
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code: int) -> None:
        """Leave the group and drop what was not sent."""
        await self.channel_layer.group_discard(self.group, self.channel_name)
        if self.sender is not None:
            self.sender.cancel()

    def collect(self, *keys: Any) -> None:
        """Something changed; what comes within half a second leaves together."""
        self.changed.update(map(int, keys))
        if self.sender is None or self.sender.done():
            self.sender = asyncio.create_task(self._send_soon())

    async def _send_soon(self) -> None:
        while self.changed:
            changed, self.changed = self.changed, set()
            visible = await database_sync_to_async(self.visible)(self.user, changed)
            if visible:
                await self.send_json({self.name: visible})
            await asyncio.sleep(_PAUSE)
