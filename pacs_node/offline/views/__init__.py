"""Pages of registration, of drafts beside the viewer, and of what waits for the centre."""

from pacs_node.offline.views.drafting import draft, draft_save
from pacs_node.offline.views.registration import cancel, day, new, patients, step
from pacs_node.offline.views.waiting import waiting

__all__ = ["cancel", "day", "draft", "draft_save", "new", "patients", "step", "waiting"]
