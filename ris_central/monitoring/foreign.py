"""A PACS outside the region that a node looks over: its page, with how it answers, a form for it, and a try-out.

What the form says is a part of the node's configuration: a new version of it, with history and the way back.
"""

import re
from typing import Any

from django import forms
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_GET, require_http_methods, require_POST
from pydantic import ValidationError

from gateway.envelope import ForeignSource
from gateway.envelope.configuration import CLOCK
from ris_central.accounts.permissions import Capability, requires
from ris_central.catalogue import foreign as catalogue
from ris_central.catalogue.actions import foreign as actions
from ris_central.catalogue.reach import in_touch
from ris_central.catalogue.views import the_user, zone_of
from ris_central.federation import configurations
from ris_central.federation import queries as nodes
from ris_central.federation.models import Node
from ris_central.monitoring.forms import Line, words
from ris_central.organizations.forms import Styled
from standards.errors import PermanentError

_PORT = 104  # of DICOM, until somebody says another
CHARACTER_SETS = [
    ("ISO_IR 192", _("Unicode (ISO_IR 192)")),
    ("ISO_IR 144", _("Cyrillic (ISO_IR 144)")),
    ("ISO_IR 100", _("Latin 1 (ISO_IR 100)")),
    ("", _("Plain Latin letters only")),
]
RETRIEVE = [
    ("c-move", _("C-MOVE: it sends to the node, which it must know")),
    ("c-get", _("C-GET: over the connection that the node opens")),
    ("wado-rs", _("WADO-RS: the node downloads")),
]
IMPORT_WHEN = [
    ("on-demand", _("When somebody asks")),
    ("now", _("At once")),
    ("night", _("At night")),
    ("catalogue", _("Never: listed only")),
]
CHANGES_BY = [
    ("", _("nothing but the study date")),
    ("StudyArrivalDate", "Study Arrival Date"),
    ("StudyCompletionDate", "Study Completion Date"),
    ("StudyVerifiedDate", "Study Verified Date"),
]


class ImportRuleForm(Line):
    """What becomes of new studies."""

    modalities = forms.CharField(required=False, label=_("Modalities (empty: all)"))
    when = forms.ChoiceField(choices=[("", "—"), *IMPORT_WHEN], required=False, label=_("Images are fetched"))


ImportRuleForms = forms.formset_factory(ImportRuleForm, extra=2)


class SourceForm(Styled):
    """A foreign PACS as a node must know it; its fields are those of ``ForeignSource``."""

    name = forms.RegexField(
        r"^(?!new$)[a-z0-9][a-z0-9-]{0,63}$",
        label=_("Name"),
        help_text=_("Latin letters, digits and hyphens: it is in worklists and the history."),
    )
    enabled = forms.BooleanField(required=False, initial=True, label=_("In use"))
    kind = forms.ChoiceField(choices=[("dicom", "DICOM (C-FIND)"), ("dicomweb", "DICOMweb (QIDO-RS)")], label=_("Kind"))
    ae_title = forms.CharField(required=False, max_length=16, label=_("AE title of the PACS"))
    host = forms.CharField(required=False, label=_("Host"))
    port = forms.IntegerField(required=False, min_value=1, max_value=65535, label=_("Port"))
    use_tls = forms.BooleanField(required=False, label="TLS")
    calling_ae_title = forms.CharField(
        required=False, max_length=16, label=_("The node calls itself"), help_text=_("Empty: by its own AE title.")
    )
    sending_ae_title = forms.CharField(
        required=False, max_length=16, label=_("It sends as"), help_text=_("Empty: under the AE title of the PACS.")
    )
    retrieve = forms.ChoiceField(choices=RETRIEVE, label=_("How images are fetched"))
    url = forms.CharField(
        required=False,
        label=_("Web address (DICOMweb)"),
        help_text=_("A password for it goes into a file in the node's secrets folder, named after the PACS."),
    )
    poll_seconds = forms.IntegerField(min_value=1, max_value=86_400, label=_("Polled every, seconds"))
    queries_per_minute = forms.IntegerField(min_value=1, max_value=6000, label=_("Requests in a minute, at most"))
    concurrent_retrieves = forms.IntegerField(min_value=1, max_value=16, label=_("Studies fetched at a time"))
    hours = forms.CharField(
        required=False,
        label=_("Hours"),
        help_text=_("Such as 19:00-07:00, in the site's time; empty: always. What a person asks for never waits."),
    )
    window_days = forms.IntegerField(min_value=0, max_value=36_500, label=_("Days looked over in full"))
    sweep_seconds = forms.IntegerField(min_value=1, label=_("How often they are, seconds"))
    undated_at_most = forms.IntegerField(
        min_value=0,
        max_value=100_000,
        label=_("Studies without a date are looked for among"),
        help_text=_("So many answers at each full look; 0: never."),
    )
    answers_at_most = forms.IntegerField(
        min_value=0, label=_("It answers with no more than"), help_text=_("Studies at a time; 0: not known.")
    )
    changes_by = forms.ChoiceField(choices=CHANGES_BY, required=False, label=_("It also searches by"))
    character_set = forms.ChoiceField(
        choices=CHARACTER_SETS, required=False, label=_("Character set where it names none")
    )
    issuer_of_patient_id = forms.CharField(
        required=False, max_length=64, label=_("Issuer of its patient numbers"), help_text=_("Empty: the site's.")
    )
    timeout_seconds = forms.FloatField(min_value=1, max_value=3600, label=_("Waited for an answer, seconds"))

    def __init__(self, *args: Any, is_new: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["name"].disabled = not is_new

    def clean_hours(self) -> list[str]:
        """The spans of the day."""
        spans = words(self.cleaned_data["hours"])
        for span in spans:
            if not all(re.match(CLOCK, end) for end in span.partition("-")[::2]):
                raise forms.ValidationError(_("%(span)s is not a span such as 19:00-07:00."), params={"span": span})
        return spans

    def clean(self) -> dict[str, Any]:
        """What the kind needs is there."""
        data = dict(super().clean() or {})
        data["port"] = data.get("port") or 0
        if data.get("kind") == "dicomweb":
            data["retrieve"] = "wado-rs"
        else:
            for name in ("ae_title", "host", "port"):
                if not data.get(name) and name not in self.errors:
                    self.add_error(name, _("Needed for DICOM."))
        url = str(data.get("url") or "")
        if data.get("retrieve") == "wado-rs" and not url.startswith(("http://", "https://")):
            self.add_error("url", _("Needed for DICOMweb; it begins with https:// or http://."))
        return data

    def group(self, *names: str) -> list[forms.BoundField]:
        """Fields that stand together."""
        return [self[name] for name in names]

    def groups(self) -> dict[str, list[forms.BoundField]]:
        """The fields of the page's sections."""
        return {
            "who": self.group("name", "kind"),
            "dicom": self.group("ae_title", "host", "port", "calling_ae_title", "use_tls"),
            "web": self.group("url"),
            "move": self.group("sending_ae_title"),
            "load": self.group("poll_seconds", "queries_per_minute", "concurrent_retrieves", "hours"),
            "oddities": self.group(
                *("window_days", "sweep_seconds", "undated_at_most", "answers_at_most", "changes_by"),
                *("character_set", "issuer_of_patient_id", "timeout_seconds"),
            ),
        }


def _node(request: HttpRequest, pk: int) -> Node:
    return get_object_or_404(nodes.visible_to(the_user(request)), pk=pk)


def _context(request: HttpRequest, node: Node, name: str) -> dict[str, Any]:
    """How the PACS answers. Raises: Http404 where the node neither has it configured nor tells of it."""
    row = next((one for one in catalogue.pacs_of(node) if one["source"] == name), None)
    if row is None:
        raise Http404
    return {"node": node, "row": row, "in_touch": in_touch(node), "zone": zone_of(the_user(request))}


@requires(Capability.CONNECT)
@require_http_methods(["GET", "POST"])
def source(request: HttpRequest, pk: int, name: str = "") -> HttpResponse:
    """A PACS of a node, or a new one: its state and its form; ``probe`` beside "save" tries it out at once."""
    node = _node(request, pk)
    body = configurations.body_of(node)
    present = configurations.newest(node)
    before = next((one for one in body["foreign"] if one["name"] == name), None)
    context = _context(request, node, name) if name else {"node": node, "in_touch": in_touch(node)}
    data = request.POST if request.method == "POST" else None
    initial = before or ForeignSource.model_construct().model_dump(mode="json") | {"name": name, "port": _PORT}
    form = SourceForm(data, is_new=not name, initial={**initial, "hours": ", ".join(initial["hours"])})
    rules = ImportRuleForms(
        data,
        prefix="rules",
        initial=[{**rule, "modalities": " ".join(rule["modalities"])} for rule in initial["rules"]],
    )
    if data is not None and form.is_valid() & rules.is_valid():
        if not name and any(one["name"] == form.cleaned_data["name"] for one in body["foreign"]):
            form.add_error("name", _("This node has a PACS of this name already."))
        elif _save(request, node, body, form, rules, before):
            if "probe" in data:
                actions.ask_probe(node, form.cleaned_data["name"], request)
            messages.success(request, _("Saved; the new version of the configuration is on its way to the node."))
            return redirect("foreign_source", node.pk, form.cleaned_data["name"])
    context |= {
        "form": form,
        "rules": rules,
        "name": name,
        "version": present.version if present else 0,
        "follows_region": present is None or present.node_id is None or present.follows_region,
        "is_configured": before is not None,
    }
    return render(request, "monitoring/foreign.html", context, status=422 if data is not None else 200)


def _save(
    request: HttpRequest, node: Node, body: dict[str, Any], form: SourceForm, rules: Any, before: dict[str, Any] | None
) -> bool:
    said = {key: value for key, value in form.cleaned_data.items() if key in ForeignSource.model_fields}
    said["rules"] = [
        {"modalities": [word.upper() for word in words(line["modalities"])], "when": line["when"]}
        for line in rules.cleaned_data
        if line.get("when") and not line.get("remove")
    ]
    try:
        made = ForeignSource.model_validate({**(before or {}), **said}).model_dump(mode="json")
        others = [one if one["name"] != made["name"] else made for one in body["foreign"]]
        _keep(request, node, {**body, "foreign": others if before else [*others, made]}, made["name"])
    except ValidationError as error:
        first = error.errors()[0]
        form.add_error(None, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")
    except PermanentError as refusal:
        form.add_error(None, _why(refusal))
    return form.is_valid()


def _keep(request: HttpRequest, node: Node, body: dict[str, Any], name: str) -> None:
    based_on = request.POST.get("based_on", "")
    configurations.save(
        node, body, reason=name, based_on=int(based_on) if based_on.isdecimal() else None, request=request
    )


def _why(refusal: PermanentError) -> Any:
    if refusal.code == "configuration-changed":
        return _("Somebody else changed the configuration meanwhile: look at the newest version and try again.")
    return refusal.detail


@requires(Capability.CONNECT)
@require_GET
def state(request: HttpRequest, pk: int, name: str) -> HttpResponse:
    """How the PACS answers, by itself: fetched again while a try-out is waited for."""
    response = render(request, "monitoring/_foreign_state.html", _context(request, _node(request, pk), name))
    response["Cache-Control"] = "no-store"
    return response


@requires(Capability.CONNECT)
@require_POST
def probe(request: HttpRequest, pk: int, name: str) -> HttpResponse:
    """Have the node try it out now: C-ECHO, a question, a request for images; then poll."""
    node = _node(request, pk)
    _context(request, node, name)
    try:
        actions.ask_probe(node, name, request)
    except PermanentError as error:
        messages.error(request, error.detail)
    return redirect("foreign_source", node.pk, name)


@requires(Capability.CONNECT)
@require_POST
def remove(request: HttpRequest, pk: int, name: str) -> HttpResponse:
    """Take it out of the configuration: asked no more, and what it listed is no longer shown as there."""
    node = _node(request, pk)
    body = configurations.body_of(node)
    left = [one for one in body["foreign"] if one["name"] != name]
    if len(left) == len(body["foreign"]):
        raise Http404
    try:
        _keep(request, node, {**body, "foreign": left}, name)
    except PermanentError as refusal:
        messages.error(request, _why(refusal))
        return redirect("foreign_source", node.pk, name)
    messages.success(request, _("Taken out of the configuration; its history brings it back."))
    return redirect("site", node.site_id)
