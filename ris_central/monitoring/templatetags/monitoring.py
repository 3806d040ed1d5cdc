"""What the page of the region needs to show figures."""

from django import template
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

register = template.Library()


@register.filter
def of(values: dict[str, int], name: str) -> int | str:
    """The value of a name, or nothing."""
    return values.get(name, "")


@register.filter
def duration(seconds: int) -> str:
    """Seconds as people say them: the two biggest units."""
    if seconds < 60:
        return _("%(n)s s") % {"n": seconds} if seconds else "—"
    if seconds < 3600:
        return _("%(n)s min") % {"n": seconds // 60}
    if seconds < 48 * 3600:
        return _("%(h)s h %(m)s min") % {"h": seconds // 3600, "m": seconds % 3600 // 60}
    return _("%(d)s d %(h)s h") % {"d": seconds // 86400, "h": seconds % 86400 // 3600}


@register.simple_tag
def spark(values: list[int]) -> SafeString:
    """A small line of the values, the newest at the right."""
    top = max([*values, 1])
    step = 60 / max(len(values) - 1, 1)
    points = " ".join(f"{number * step:.1f},{16 - 14 * value / top:.1f}" for number, value in enumerate(values))
    return format_html(
        '<svg width="60" height="18" viewBox="0 0 60 18" aria-hidden="true">'
        '<polyline points="{}" fill="none" stroke="currentColor" stroke-width="1.5" opacity=".7"/></svg>',
        points,
    )
