"""Names and sexes as people read them. ``{% load regis_names %}``"""

from django import template
from django.utils.translation import gettext as _

from standards.person_names import display

register = template.Library()


@register.filter
def person_name(pn: object) -> str:
    """A PN as a person writes it; a dash for a patient without a name."""
    return display(pn) or "—"


@register.filter
def sex(code: str) -> str:
    """DICOM's sex code in one word."""
    return {"F": _("female"), "M": _("male"), "O": _("other")}.get(code, "")
