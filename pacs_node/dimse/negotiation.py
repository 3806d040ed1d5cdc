"""Which presentation contexts a peer gets: the first supported transfer syntax in the order that it proposes.

Where a peer is to receive by C-GET, uncompressed goes first: of the syntaxes of a context only one is agreed on, and
what is stored can always be sent uncompressed, but not compressed in whatever way the peer likes best.

pynetdicom would choose by the acceptor's order, so each proposal is narrowed to the choice before it negotiates.
Source: PS3.8 7.1.1.13 (the acceptor chooses), PS3.7 D.3.3.4 (roles)
"""

from dataclasses import dataclass
from typing import Final

from pynetdicom.association import Association
from pynetdicom.presentation import PresentationContext, build_context
from pynetdicom.sop_class import (
    ModalityWorklistInformationFind,
    PatientRootQueryRetrieveInformationModelFind,
    PatientRootQueryRetrieveInformationModelGet,
    PatientRootQueryRetrieveInformationModelMove,
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelGet,
    StudyRootQueryRetrieveInformationModelMove,
)

from pacs_node.clinic.models import ApplicationEntity
from pacs_node.config import storage_sop_classes
from standards.sop_classes import STORAGE_COMMITMENT_PUSH_MODEL, VERIFICATION
from standards.transfer_syntaxes import (
    EXPLICIT_VR_BIG_ENDIAN,
    EXPLICIT_VR_LITTLE_ENDIAN,
    IMPLICIT_VR_LITTLE_ENDIAN,
    STORAGE_TRANSFER_SYNTAXES,
    is_encapsulated,
)

SERVICES: Final = frozenset(
    {
        VERIFICATION,
        STORAGE_COMMITMENT_PUSH_MODEL,
        str(PatientRootQueryRetrieveInformationModelFind),
        str(PatientRootQueryRetrieveInformationModelGet),
        str(PatientRootQueryRetrieveInformationModelMove),
        str(StudyRootQueryRetrieveInformationModelFind),
        str(StudyRootQueryRetrieveInformationModelGet),
        str(StudyRootQueryRetrieveInformationModelMove),
        str(ModalityWorklistInformationFind),
    }
)
"""What the node offers besides storage."""

MESSAGE_SYNTAXES: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN, EXPLICIT_VR_BIG_ENDIAN)
"""In which queries and their like travel."""


UNCOMPRESSED: Final = (EXPLICIT_VR_LITTLE_ENDIAN, IMPLICIT_VR_LITTLE_ENDIAN)
_VIDEOS: Final = frozenset(f"1.2.840.10008.5.1.4.1.1.77.1.{tail}" for tail in ("1.1", "2.1", "4.1"))


@dataclass(frozen=True)
class SyntaxRules:
    """The transfer syntaxes that objects of a peer may have, and those that are taken first if it offers them."""

    storage: frozenset[str]
    preferred: tuple[str, ...] = ()

    def choice(self, abstract_syntax: str, offered: list[str], *, peer_receives: bool = False) -> str | None:
        """The syntax for a proposed context, None where there is none."""
        if abstract_syntax not in storage_sop_classes():
            return next((syntax for syntax in offered if syntax in MESSAGE_SYNTAXES), None)
        first = [syntax for syntax in self.preferred if syntax in offered]
        if peer_receives and abstract_syntax not in _VIDEOS:
            first += [syntax for syntax in UNCOMPRESSED if syntax in offered]
        return next((syntax for syntax in (*first, *offered) if syntax in self.storage), None)


def listed(text: str) -> tuple[str, ...]:
    """The UIDs of a column of the registry."""
    return tuple(uid.strip() for uid in text.split(",") if uid.strip())


def rules_for(entity: ApplicationEntity) -> SyntaxRules:
    """What the registry says of the transfer syntaxes of a peer. Implicit VR Little Endian cannot be forbidden."""
    allowed = set(STORAGE_TRANSFER_SYNTAXES) - set(listed(entity.forbidden_transfer_syntaxes))
    if ApplicationEntity.Quirk.UNCOMPRESSED_ONLY in entity.quirks:
        allowed = {syntax for syntax in allowed if not is_encapsulated(syntax)}
    return SyntaxRules(frozenset(allowed | {IMPLICIT_VR_LITTLE_ENDIAN}), listed(entity.preferred_transfer_syntaxes))


def narrow(association: Association, rules: SyntaxRules) -> None:
    """Leave pynetdicom one choice for each context that is proposed."""
    supported: dict[str, PresentationContext] = {}
    receiving = {str(uid) for uid, role in association.requestor.role_selection.items() if role.scp_role}
    for proposed in association.requestor.primitive.presentation_context_definition_list:
        abstract = str(proposed.abstract_syntax)
        if abstract not in SERVICES and abstract not in storage_sop_classes():
            continue
        offered = [str(syntax) for syntax in proposed.transfer_syntax]
        choice = rules.choice(abstract, offered, peer_receives=abstract in receiving)
        known = supported.get(abstract)
        if known is None:
            # Some syntax must be there; where none fits, this one was not proposed, so the context is refused.
            known = supported[abstract] = build_context(abstract, [choice or IMPLICIT_VR_LITTLE_ENDIAN])
            if abstract in storage_sop_classes() or abstract == STORAGE_COMMITMENT_PUSH_MODEL:
                known.scu_role = known.scp_role = True
        if choice is not None:
            known.add_transfer_syntax(choice)
            proposed.transfer_syntax = [choice]
    association.acceptor.supported_contexts = list(supported.values())
