"""A registered AE that instances are sent to: as many associations as their classes and syntaxes need."""

from collections.abc import Iterable
from typing import Final

import structlog

from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import config
from pacs_node.dimse.calling import MOST_CONTEXTS, Address, associate
from pacs_node.dimse.channel import Channel
from pacs_node.dimse.negotiation import SyntaxRules, rules_for
from pacs_node.dimse.sender import Manner, Opened, Sent, send_opened
from pacs_node.dimse.tls import client_context
from standards.errors import RegisError, TransientError
from standards.fallback_encoding import FALLBACKS

log = structlog.get_logger(__name__)

Proposal = tuple[str, tuple[str, ...]]

_MOST_LOSSES: Final = 3
_NOT_REACHED: Final = 0x0110


def address_of(entity: ApplicationEntity) -> Address:
    """Where a registered AE listens, and how it is spoken to. Raises: PermanentError("invalid-setting")."""
    tls = client_context(config()) if entity.uses_tls else None
    return Address(entity.ae_title, entity.host, entity.port, tls)


def proposals(pairs: Iterable[tuple[str, str]], rules: SyntaxRules) -> list[dict[str, list[Proposal]]]:
    """By SOP class the contexts to propose, parted so that no association has more than 128.

    Each class is proposed in each syntax it is stored in, unless the registry forbids
    it, and once more uncompressed for a peer that refuses those.
    """
    stored: dict[str, list[str]] = {}
    for sop_class, syntax in sorted(set(pairs)):
        known = stored.setdefault(sop_class, [])
        if syntax in rules.storage:
            known.append(syntax)
    parts: list[dict[str, list[Proposal]]] = [{}]
    for sop_class, syntaxes in stored.items():
        contexts: list[Proposal] = [(sop_class, (syntax,)) for syntax in syntaxes]
        fallback = tuple(syntax for syntax in FALLBACKS if syntax not in syntaxes and syntax in rules.storage)
        if fallback:
            contexts.append((sop_class, fallback))
        if sum(len(known) for known in parts[-1].values()) + len(contexts) > MOST_CONTEXTS:
            parts.append({})
        parts[-1][sop_class] = contexts
    return parts


class Destination:
    """Sends instances to one AE. Associations are opened when first needed, and again a few times after a loss."""

    def __init__(
        self,
        entity: ApplicationEntity,
        pairs: Iterable[tuple[str, str]],
        manner: Manner,
    ) -> None:
        self.entity = entity
        self._parts = proposals(pairs, rules_for(entity))
        self._part_of = {sop_class: number for number, part in enumerate(self._parts) for sop_class in part}
        self._manner = manner
        self._channels: dict[int, Channel] = {}
        self._refusals: dict[int, str] = {}
        self._losses = 0

    def send(self, opened: Opened) -> Sent:
        """Send one instance; an unreachable peer is a failed sub-operation with its reason. Raises: Cancelled."""
        part = self._part_of.get(opened.stored.sop_class_uid, 0)
        channel = self._channels.get(part)
        if channel is None and part not in self._refusals:
            channel = self._open(part)
        if channel is None:
            opened.close()
            return Sent(_NOT_REACHED, self._refusals[part])
        try:
            return send_opened(channel, opened, self._manner)
        except TransientError as error:
            channel.close()
            del self._channels[part]
            self._losses += 1
            log.warning("destination-lost", ae_title=self.entity.ae_title, code=error.code, detail=error.detail)
            if self._losses >= _MOST_LOSSES:
                self._refusals[part] = str(error)
            return Sent(_NOT_REACHED, str(error))

    def _open(self, part: int) -> Channel | None:
        contexts = [context for contexts in self._parts[part].values() for context in contexts]
        try:
            channel = associate(
                address_of(self.entity),
                calling=config().ae_title,
                contexts=contexts,
                timeout=config().network_timeout_seconds,
            )
            channel.limit_pdu(self.entity.maximum_pdu_bytes)
        except RegisError as error:
            log.warning("destination-refused", ae_title=self.entity.ae_title, code=error.code, detail=error.detail)
            self._refusals[part] = str(error)
            return None
        self._channels[part] = channel
        return channel

    def close(self) -> None:
        """Release what is open; what was cancelled within an object is closed."""
        for channel in self._channels.values():
            if channel.ended:
                channel.close()
            else:
                channel.release()
        self._channels.clear()
