"""What organizations announces to higher apps, in the transaction of the change."""

from collections.abc import Callable

from ris_central.organizations.models import Site

SiteListener = Callable[[Site], None]
_people_listeners: list[SiteListener] = []
_storage_listeners: list[SiteListener] = []


def on_people_changed(listener: SiteListener) -> None:
    """Call ``listener(site)`` when the people of a site, or something of theirs, changed."""
    _people_listeners.append(listener)


def people_changed(site: Site) -> None:
    """Tell every listener."""
    for listener in _people_listeners:
        listener(site)


def on_storage_model_changed(listener: SiteListener) -> None:
    """Call ``listener(site)`` when a site's model of storage changed: its node is to mirror by other rules."""
    _storage_listeners.append(listener)


def storage_model_changed(site: Site) -> None:
    """Tell every listener."""
    for listener in _storage_listeners:
        listener(site)
