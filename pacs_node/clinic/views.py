"""The node's own pages: login, studies, state, devices, refused peers, worklist, audit trail, health."""

from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth import authenticate, login, logout
from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET, require_http_methods, require_POST

from gateway.foreign import queries as foreign
from gateway.models import ParkedCommand
from pacs_node import proxying
from pacs_node.clinic import actions, audit, logins, queries
from pacs_node.clinic.models import ApplicationEntity, AuditEntry, RefusedAssociation, WorklistEntry
from pacs_node.clinic.permissions import is_engineer, may_scrape
from pacs_node.config import config
from pacs_node.dimse.admission import UNKNOWN_CALLED, UNKNOWN_CALLING, WRONG_ADDRESS
from pacs_node.dimse.tls import TLS_REFUSED
from pacs_node.offline import accessions
from pacs_node.storage.models import Finding
from standards.errors import PermanentError

View = Callable[..., HttpResponse]
STUDIES_A_PAGE = 50


def client_address(request: HttpRequest) -> str:
    """The address that the request came from."""
    return str(request.META.get("REMOTE_ADDR", ""))


def person(request: HttpRequest) -> User:
    """The person of a request that has passed ``login_required``."""
    assert isinstance(request.user, User)
    return request.user


def engineer_required(view: View) -> View:
    """Only engineers; others of the site get a page that says so, and the try is in the audit trail."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        if not request.user.is_authenticated:
            return redirect(f"{reverse('login')}?{urlencode({'next': request.get_full_path()})}")
        if not is_engineer(person(request)):
            audit.record(
                "page.refused",
                actor=person(request).username,
                outcome="refused",
                entity=request.path,
                address=client_address(request),
            )
            return render(request, "clinic/refused_page.html", status=403)
        return view(request, *args, **kwargs)

    return guarded


def _login_failure(username: str, address: str) -> str:
    """Count the wrong guess, write it down, and say in one sentence what the person can do."""
    audit.record("login.failed", actor=username, outcome="refused", address=address)
    if logins.count_wrong_guess(username):
        audit.record("login.locked", actor=username, outcome="refused", address=address)
        return _locked_sentence(logins.locked_minutes(username))
    return _("This name and password do not fit together. Check the keyboard layout and Caps Lock.")


def _locked_sentence(minutes: int) -> str:
    return ngettext(
        "Too many wrong passwords: this name is locked for %(minutes)d more minute. "
        "Nobody can log in with it until then.",
        "Too many wrong passwords: this name is locked for %(minutes)d more minutes. "
        "Nobody can log in with it until then.",
        minutes,
    ) % {"minutes": minutes}


@never_cache
@require_http_methods(["GET", "POST"])
def login_page(request: HttpRequest) -> HttpResponse:
    """Log in; after ten wrong guesses the name is locked for a while, whether or not it exists."""
    wanted = request.POST.get("next") or request.GET.get("next") or "/"
    if not url_has_allowed_host_and_scheme(wanted, {request.get_host()}, request.is_secure()):
        wanted = "/"
    if request.user.is_authenticated:
        return redirect(wanted)
    error, status = "", 200
    username = request.POST.get("username", "").strip()
    if request.method == "POST":
        address = client_address(request)
        if minutes := logins.locked_minutes(username):
            audit.record("login.failed", actor=username, outcome="refused", address=address, detail={"locked": True})
            error, status = _locked_sentence(minutes), 429
        elif user := authenticate(request, username=username, password=request.POST.get("password", "")):
            logins.forget_wrong_guesses(username)
            login(request, user)
            audit.record("login", actor=username, address=address)
            return redirect(wanted)
        else:
            error, status = _login_failure(username, address), 401
    context = {"error": error, "next": wanted, "username": username, "node": config()}
    return render(request, "clinic/login.html", context, status=status)


@require_POST
def logout_page(request: HttpRequest) -> HttpResponse:
    """Log out."""
    if request.user.is_authenticated:
        audit.record("logout", actor=person(request).username, address=client_address(request))
    logout(request)
    return redirect("login")


@login_required
@require_GET
def studies(request: HttpRequest) -> HttpResponse:
    """What the node holds, with search by parts of a name, id or birth date; htmx asks for the table alone."""
    text = request.GET.get("q", "").strip()[:200]
    page = Paginator(queries.find_studies(person(request), text), STUDIES_A_PAGE).get_page(request.GET.get("page"))
    lines = queries.study_lines(list(page.object_list))
    template = "clinic/studies_table.html" if "HX-Request" in request.headers else "clinic/studies.html"
    return render(
        request, template, {"page": page, "lines": lines, "q": text, "engineer": is_engineer(person(request))}
    )


@login_required
@require_GET
def state(request: HttpRequest) -> HttpResponse:
    """How the node is: joined, mirrored, disk, waiting."""
    context = {
        "node": config(),
        "state": queries.node_state(),
        "health": queries.health(),
        "engineer": is_engineer(person(request)),
        "foreign": foreign.sources(),
    }
    template = "clinic/state_body.html" if "HX-Request" in request.headers else "clinic/state.html"
    return render(request, template, context)


@login_required
@require_GET
def devices(request: HttpRequest) -> HttpResponse:
    """The registry of application entities."""
    rows = ApplicationEntity.objects.order_by("ae_title")
    return render(request, "clinic/devices.html", {"devices": rows, "engineer": is_engineer(person(request))})


QUIRKS = {
    "uncompressed-only": gettext_lazy("Sends and takes uncompressed images only"),
    "required-keys-only": gettext_lazy("Is confused by optional keys in answers: send it only what it needs"),
    "commit-on-same-association": gettext_lazy("Wants the report of storage commitment over its own association"),
    "writes-windows-1251": gettext_lazy("Writes Windows-1251 whatever it declares"),
    "writes-koi8-r": gettext_lazy("Writes KOI8-R whatever it declares"),
    "writes-utf-8": gettext_lazy("Writes UTF-8 whatever it declares"),
    "writes-cp866": gettext_lazy("Writes CP866 whatever it declares"),
}
RIGHTS = {
    "store": gettext_lazy("store"),
    "query": gettext_lazy("find"),
    "retrieve": gettext_lazy("retrieve"),
    "commit": gettext_lazy("storage commitment"),
    "worklist": gettext_lazy("worklist"),
}


@engineer_required
@require_http_methods(["GET", "POST"])
def device(request: HttpRequest, key: int) -> HttpResponse:
    """What one application entity may do, and how it is spoken to."""
    entity = get_object_or_404(ApplicationEntity, pk=key)
    error, status = "", 200
    if request.method == "POST":
        try:
            rules = _rules(request)
            actions.set_rules(entity, rules, actor=person(request).username, address=client_address(request))
        except PermanentError as refusal:
            error, status = _rule_sentence(refusal), 422
        else:
            messages.success(request, _("The rules of %(ae)s are kept.") % {"ae": entity.ae_title})
            return redirect("devices")
    context = {
        "device": entity,
        "rights": [(right, word, getattr(entity, f"may_{right}")) for right, word in RIGHTS.items()],
        "quirks": [(quirk, sentence, quirk in entity.quirks) for quirk, sentence in QUIRKS.items()],
        "error": error,
        "engineer": True,
    }
    return render(request, "clinic/device.html", context, status=status)


def _rules(request: HttpRequest) -> actions.EntityRules:
    form = request.POST
    return actions.EntityRules(
        rights=frozenset(form.getlist("rights")),
        addresses=form.get("addresses", "")[:1000],
        host=form.get("host", "")[:255],
        port=_whole_number(form.get("port", "")),
        uses_tls="uses_tls" in form,
        character_set=form.get("character_set", "").strip()[:64],
        issuer_of_patient_id=form.get("issuer_of_patient_id", "")[:64],
        preferred_transfer_syntaxes=form.get("preferred_transfer_syntaxes", "")[:1024],
        forbidden_transfer_syntaxes=form.get("forbidden_transfer_syntaxes", "")[:1024],
        maximum_pdu_bytes=_whole_number(form.get("maximum_pdu_bytes", "")),
        quirks=frozenset(form.getlist("quirks")),
    )


def _whole_number(text: str) -> int:
    text = text.strip() or "0"
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise PermanentError("invalid-number", text)
    return int(text)


def _rule_sentence(refusal: PermanentError) -> str:
    sentences = {
        "invalid-address": _("%(value)s is neither an address nor a network such as 192.168.1.0/24."),
        "invalid-port": _("%(value)s is no port."),
        "invalid-number": _("%(value)s is no whole number."),
        "invalid-pdu-length": _("A longest PDU is 0 (no limit of its own) or at least 4096 bytes, not %(value)s."),
        "unknown-transfer-syntax": _("%(value)s is no transfer syntax that images have."),
        "unknown-character-set": _("%(value)s is no character set of DICOM, such as ISO_IR 192 or ISO_IR 144."),
    }
    return sentences.get(refusal.code, "%(value)s") % {"value": refusal.detail[:80]}


@login_required
@require_GET
def refused(request: HttpRequest) -> HttpResponse:
    """Peers that were turned away at the DICOM port, and why."""
    sentences = {
        UNKNOWN_CALLING: _("This node does not know the calling AE title."),
        WRONG_ADDRESS: _("The AE title is known, but it may not call from this address."),
        UNKNOWN_CALLED: _("The device calls this node by a wrong AE title: change it at the device."),
        TLS_REFUSED: _("It could not agree with this node on TLS: its certificate is missing or of another authority."),
    }
    rows = [
        {
            "refusal": row,
            "why": sentences.get(row.reason, row.reason),
            "can_be_admitted": bool(row.calling_ae_title) and row.reason != UNKNOWN_CALLED,
        }
        for row in RefusedAssociation.objects.order_by("-last_at")[:200]
    ]
    context = {"rows": rows, "engineer": is_engineer(person(request))}
    return render(request, "clinic/refused.html", context)


@engineer_required
@require_POST
def admit(request: HttpRequest, refusal: int) -> HttpResponse:
    """Admit the peer of a refusal into the registry."""
    row = get_object_or_404(RefusedAssociation, pk=refusal)
    actions.admit(row.calling_ae_title, actor=person(request).username, address=client_address(request))
    messages.success(request, _("%(ae)s may talk to this node from now on.") % {"ae": row.calling_ae_title})
    return redirect("refused")


@login_required
@require_GET
def worklist(request: HttpRequest) -> HttpResponse:
    """The schedule as this node has it now: what its devices are told."""
    since = timezone.now() - timedelta(days=2)  # so that what is long over does not hide what is to come
    entries = WorklistEntry.objects.filter(starts_at__gte=since).order_by("starts_at")[:500]
    return render(request, "clinic/worklist.html", {"entries": entries, "engineer": is_engineer(person(request))})


@engineer_required
@require_GET
def audit_trail(request: HttpRequest) -> HttpResponse:
    """Who saw or changed what, newest first, and whether the chain holds."""
    rows = AuditEntry.objects.order_by("-pk")
    text = request.GET.get("q", "").strip()[:200]
    if text:
        rows = rows.filter(actor__icontains=text) | rows.filter(entity__icontains=text) | rows.filter(action=text)
    page = Paginator(rows, 100).get_page(request.GET.get("page"))
    broken = audit.first_break() if "check" in request.GET else None
    context = {"page": page, "q": text, "checked": "check" in request.GET, "broken": broken, "engineer": True}
    return render(request, "clinic/audit.html", context)


@never_cache
@require_GET
def healthz(_request: HttpRequest) -> JsonResponse:
    """For supervisors: 200 when database, storage and DICOM port all work, else 503; says which does not."""
    parts = queries.health()
    healthy = all(value == "ok" for value in parts.values())
    body = {"status": "ok" if healthy else "failing", "node": config().name, "parts": parts}
    return JsonResponse(body, status=200 if healthy else 503)


@never_cache
@require_GET
def metrics(request: HttpRequest) -> HttpResponse:
    """Figures of the node in the Prometheus text format; no names, no identifiers of patients.

    To this machine, or to who shows ``REGIS_NODE_METRICS_TOKEN`` as ``Authorization: Bearer``.
    """
    if not may_scrape(request):
        return HttpResponse("The metrics are given to this machine, or for the token.\n", status=403)
    now = queries.node_state()
    lines = [
        "# TYPE regis_node_instances gauge",
        f"regis_node_instances {now.instances}",
        "# TYPE regis_node_studies gauge",
        f"regis_node_studies {now.studies}",
        "# TYPE regis_node_variants gauge",
        f"regis_node_variants {now.variants}",
        "# TYPE regis_node_events_waiting gauge",
        f"regis_node_events_waiting {now.events_waiting}",
        "# TYPE regis_node_storage_free_bytes gauge",
        f"regis_node_storage_free_bytes {now.disk_free}",
        "# TYPE regis_node_storage_size_bytes gauge",
        f"regis_node_storage_size_bytes {now.disk_total}",
        "# TYPE regis_node_storage_findings gauge",
        f"regis_node_storage_findings {Finding.objects.filter(resolved_at=None).count()}",
        "# TYPE regis_node_commands_not_understood gauge",
        f"regis_node_commands_not_understood {ParkedCommand.objects.count()}",
        "# TYPE regis_node_clock_offset_seconds gauge",
        f"regis_node_clock_offset_seconds {now.joined.clock_offset_seconds if now.joined else 0}",
        "# TYPE regis_node_accession_numbers_left gauge",
        f"regis_node_accession_numbers_left {accessions.numbers().left}",
        "# TYPE regis_node_deliveries gauge",
    ]
    for row in now.deliveries:
        delivered, waiting = row.closed - row.receipted, row.total - row.closed - row.failed
        counts = {"receipted": row.receipted, "delivered": delivered, "waiting": waiting, "failed": row.failed}
        for name, value in counts.items():
            label = row.destination.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
            lines.append(f'regis_node_deliveries{{destination="{label}",status="{name}"}} {value}')
    lines += proxying.metrics()
    return HttpResponse("\n".join(lines) + "\n", content_type="text/plain; version=0.0.4; charset=utf-8")
