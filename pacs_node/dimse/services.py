"""Which of the node's own services answers a request that came over an association of pynetdicom's."""

from typing import Any

import structlog
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_FIND, C_GET, C_MOVE

from pacs_node.dimse.find import STUDY_FINDS, serve_find
from pacs_node.dimse.retrieve import serve_retrieve

log = structlog.get_logger(__name__)


def on_established(event: evt.Event) -> None:
    """Answer the requests of this association that pynetdicom's service classes answer too slowly, or not right."""
    association = event.assoc
    plain = association._serve_request

    def serve(message: Any, context_id: int) -> None:
        # Not only what pynetdicom finds valid: a request without an identifier wants an answer too.
        is_query = isinstance(message, C_FIND) and str(message.AffectedSOPClassUID) in STUDY_FINDS
        is_ours = is_query or isinstance(message, C_MOVE | C_GET)
        is_request = is_ours and None not in (message.MessageID, message.AffectedSOPClassUID)
        if is_request and context_id in association._accepted_cx:
            try:
                (serve_find if is_query else serve_retrieve)(association, message, context_id)
            except Exception:  # the boundary of the association: it ends, the node goes on
                log.exception("query-broke" if is_query else "retrieve-broke")
                association.abort()
            return
        plain(message, context_id)

    association._serve_request = serve
