"""What the catalogue announces, and where higher apps add to its pages. They register in ``AppConfig.ready()``."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.http import HttpRequest
from django.utils.functional import Promise

if TYPE_CHECKING:  # apps register before models are loaded
    from ris_central.catalogue.models import Study

StudyListener = Callable[["Sequence[Study]"], None]
PanelContext = Callable[[HttpRequest, "Study"], dict[str, Any] | None]


@dataclass(frozen=True)
class StudyPanel:
    """A part of the study page: rendered where ``context`` gives a dict, left out where it gives None."""

    template: str
    context: PanelContext
    order: int


@dataclass(frozen=True)
class WorklistFilter:
    """A choice in the worklist's status filter: ``{key: (label, condition)}`` in one place."""

    key: str
    label: str | Promise
    condition: Q


_study_listeners: list[StudyListener] = []
_panels: list[StudyPanel] = []
_annotations: dict[str, Any] = {}
_labels: dict[str, Callable[[Any], str]] = {}
_filters: list[WorklistFilter] = []


def on_study_changed(listener: StudyListener) -> None:
    """Call ``listener(studies)`` when images, holders or completeness of studies changed, in that transaction."""
    _study_listeners.append(listener)


def announce(studies: "Sequence[Study]") -> None:
    """Tell every listener; the first that raises ends the transaction."""
    for listener in _study_listeners:
        listener(studies)


def add_panel(template: str, context: PanelContext, order: int) -> None:
    """Add a part to the study page; smaller ``order`` stands higher."""
    _panels.append(StudyPanel(template, context, order))
    _panels.sort(key=lambda panel: panel.order)


def panels() -> list[StudyPanel]:
    """The parts of the study page, in order."""
    return list(_panels)


def add_worklist_column(name: str, expression: Any, label: Callable[[Any], str]) -> None:
    """Annotate each study of the worklist with ``expression`` as ``name``; ``label(value)`` is what people read."""
    _annotations[name] = expression
    _labels[name] = label


def annotations() -> dict[str, Any]:
    """Expressions by name."""
    return dict(_annotations)


def label_of(name: str, value: Any) -> str:
    """What people read for a value of an annotated column."""
    return _labels[name](value) if name in _labels else ""


def add_worklist_filter(key: str, label: str | Promise, condition: Q) -> None:
    """Add a choice to the worklist's status filter."""
    _filters.append(WorklistFilter(key, label, condition))


def worklist_filters() -> list[WorklistFilter]:
    """The added choices."""
    return list(_filters)
