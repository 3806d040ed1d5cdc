"""Words for the values of a worklist item."""

from django import template
from django.template import Context
from django.utils.functional import Promise

from pacs_node.offline.permissions import may_write_drafts
from pacs_node.offline.words import PRIORITIES

register = template.Library()


@register.simple_tag(takes_context=True)
def writes_drafts(context: Context) -> bool:
    """Whether the person of the page may write drafts of reports."""
    return may_write_drafts(context["request"].user)


@register.filter
def urgency(value: str) -> str | Promise:
    """The word for a Requested Procedure Priority."""
    return PRIORITIES.get(value, value)
