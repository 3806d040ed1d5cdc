"""What the node's pages need beyond Django's own tags."""

from datetime import datetime
from typing import Any

from django import template
from django.template.defaultfilters import date as format_date
from django.templatetags.static import static
from django.utils import timezone

from gateway.models import JoinState
from pacs_node.config import config
from standards.person_names import display

register = template.Library()


@register.simple_tag
def vendor(name: str) -> str:
    """The address of a vendored file, empty when it is not installed: pages then do without."""
    return static(f"vendor/{name}") if (config().vendor_dir / name).is_file() else ""


@register.simple_tag
def node_name() -> str:
    """The name of this node in the region."""
    state = JoinState.objects.only("name", "directory").first()
    return (state.directory.get("site_name") or state.name) if state else config().name


@register.filter
def person(value: str) -> str:
    """A PN value as a person writes it."""
    return display(value)


@register.filter
def dicom_date(value: str) -> str:
    """A DA value as the reader's language writes dates; as it is when it is no date."""
    try:
        day = datetime.strptime(value, "%Y%m%d")
    except ValueError:
        return value
    return format_date(day, "SHORT_DATE_FORMAT")


@register.filter
def dicom_time(value: str) -> str:
    """Hours and minutes of a TM value."""
    return f"{value[:2]}:{value[2:4]}" if len(value) >= 4 and value[:4].isdigit() else value


@register.filter
def person_of(item: dict[str, Any], key: str) -> str:
    """A PN value of a worklist item as a person writes it."""
    return display(item.get(key, ""))


@register.filter
def is_recent(moment: datetime | None) -> bool:
    """Whether something happened within the last two minutes."""
    return moment is not None and (timezone.now() - moment).total_seconds() < 120
