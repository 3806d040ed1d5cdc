"""The signed opinion as a PDF."""

from zoneinfo import ZoneInfo

from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext as _

from ris_central.consults.models import Consult
from ris_central.reporting.documents.pdf import Page, render_pdf
from ris_central.reporting.documents.rendering import facts_of
from standards.errors import ConflictError


def opinion_pdf(consult: Consult) -> bytes:
    """A4 with question and opinion, in the region's language.

    Raises: ConflictError("not-signed").
    """
    if consult.signed_at is None or consult.expert is None:
        raise ConflictError("not-signed", "Only a signed opinion is a document.")
    zone = ZoneInfo(consult.reference_site.time_zone)
    expert = consult.expert
    who = ", ".join(part for part in (expert.get_full_name() or expert.username, expert.position) if part)
    with translation.override(settings.LANGUAGE_CODE):
        signed = _("Signed: %(who)s, %(when)s") % {
            "who": who,
            "when": f"{consult.signed_at.astimezone(zone):%d.%m.%Y %H:%M}",
        }
        page = Page(
            title=_("Consult opinion"),
            institution=consult.reference_site.name,
            facts=[*facts_of(consult.study), (_("Asked by"), f"{consult.requester}, {consult.requesting_site}")],
            texts=[(_("Question"), consult.question), (_("Opinion"), consult.opinion)],
            signatures=[signed],
            footer=f"{settings.CONFIG.region_name} · SHA-256 {consult.content_sha256[:32]}…",
            author=who,
            page_label=_("page {} of {}"),
        )
        return render_pdf(page)
