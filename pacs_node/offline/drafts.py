"""Drafts of reports: every pause in typing is a durable revision here; the centre hears of quiet ones."""

from datetime import timedelta
from typing import Final

from django.contrib.auth.models import User
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from gateway import actions as gateway
from gateway import envelope
from pacs_node.clinic import audit
from pacs_node.offline.models import DraftRevision, ReportDraft
from pacs_node.study_index.models import Study
from standards.errors import ConflictError

QUIET: Final = timedelta(seconds=10)
"""A draft is told to the centre when nobody has typed for so long …"""
LONGEST: Final = timedelta(seconds=60)
"""… or when it was not told for so long."""


class VersionConflict(ConflictError):
    """The draft was saved from another window meanwhile. ``current`` is that text; the refused one stays typed."""

    def __init__(self, current: ReportDraft) -> None:
        super().__init__("version-conflict", "This draft was saved from another window meanwhile.")
        self.current = current


@transaction.atomic
def save(study: Study, author: User, *, version: int, findings: str, conclusion: str, address: str = "") -> ReportDraft:
    """Keep the text that was typed over ``version`` (0: there was none). Each save is a revision of its own.

    Raises: VersionConflict.
    """
    draft = _mine(study, author, version)
    if draft.version and (draft.findings, draft.conclusion) == (findings, conclusion):
        return draft
    if draft.version != version:
        raise VersionConflict(draft)
    if not draft.version:
        audit.record("draft.begun", actor=author.username, entity=study.study_instance_uid, address=address)
    draft.findings, draft.conclusion, draft.version = findings, conclusion, version + 1
    draft.save()
    DraftRevision.objects.create(draft=draft, version=draft.version, findings=findings, conclusion=conclusion)
    return draft


def _mine(study: Study, author: User, version: int) -> ReportDraft:
    rows = ReportDraft.objects.select_for_update().select_related("author")
    key = {"study_instance_uid": study.study_instance_uid, "patient_id": study.patient_id, "author": author}
    found = rows.filter(**key).first()
    if found is not None:
        return found
    try:
        with transaction.atomic():
            return ReportDraft.objects.create(**key)
    except IntegrityError:
        return rows.get(**key)


@transaction.atomic
def tell(draft: ReportDraft) -> None:
    """Give the draft as it is now to the relay; told once a version."""
    draft = ReportDraft.objects.select_for_update().select_related("author").get(pk=draft.pk)
    if draft.told_version >= draft.version:
        return
    ReportDraft.objects.filter(pk=draft.pk).update(told_version=draft.version)
    gateway.record_fact(
        envelope.ReportDraft(
            study_instance_uid=draft.study_instance_uid,
            patient_id=draft.patient_id,
            author=draft.author.username,
            version=draft.version,
            findings=draft.findings,
            conclusion=draft.conclusion,
            saved_at=draft.updated_at,
        )
    )


def tell_quiet() -> None:
    """Tell of every draft whose author paused, or that has been typed at for long."""
    now = timezone.now()
    for draft in ReportDraft.objects.filter(told_version__lt=F("version")):
        first = draft.revisions.filter(version__gt=draft.told_version).order_by("version").first()
        if draft.updated_at < now - QUIET or (first is not None and first.saved_at < now - LONGEST):
            tell(draft)
