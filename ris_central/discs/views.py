"""The disc desk: jobs with live progress, ordering from a study or patient, downloading the image."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.core.exceptions import PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from ris_central.accounts.permissions import Capability, can, requires, to_login
from ris_central.audit.actions import record
from ris_central.catalogue.models import Study
from ris_central.catalogue.queries import visible_to as visible_studies
from ris_central.catalogue.views import the_user, zone_of
from ris_central.discs import actions, queries
from ris_central.discs.models import DiscJob
from ris_central.discs.transitions import RUNNING
from ris_central.patients.models import Patient
from standards.errors import PermanentError
from standards.person_names import display

_CHUNK = 1 << 20


def advice(code: str) -> str:
    """What to do about a failure."""
    sentences = {
        "disc-too-large": _("The images do not fit: try again on a larger medium."),
        "holder-unreachable": _(
            "The node that has the images does not answer; the job goes on by itself when it does."
        ),
        "no-archive": _("No archive has joined the region yet."),
        "instances-missing": _("Not all images have arrived yet; the job goes on by itself."),
        "disk-full": _("The centre's disk is full: make room, the job goes on by itself."),
        "nothing-to-publish": _("There is nothing to put on the disc."),
        "nothing-held": _("No node holds these images any more: call the engineer."),
        "verification-failed": _(
            "What was read back differs from what was written: try again, and call the engineer if it stays."
        ),
        "instances-rejected": _("Some images cannot go on a disc: call the engineer."),
        "state-conflict": _("Somebody else has acted on this disc meanwhile."),
        "nothing-chosen": _("Choose at least one study."),
        "study-not-visible": _("At least one of these studies is not open to you."),
    }
    return sentences.get(code, _("Try again; if it stays, call the engineer."))


def describe_job(job: DiscJob) -> dict[str, Any]:
    """What a row shows of a job."""
    progress = 100 if job.status == DiscJob.Status.COMPLETED else round(100 * job.done / job.total) if job.total else 0
    return {
        "job": job,
        "name": display(job.patient.name),
        "studies": list(job.studies.all()),
        "progress": progress,
        "is_running": job.status in RUNNING,
        "advice": advice(job.error_code) if job.error_code else "",
        "megabytes": round(job.image_bytes / 1e6, 1),
    }


@requires(Capability.BURN)
@require_safe
def desk(request: HttpRequest) -> HttpResponse:
    """Jobs, newest first, live."""
    user = the_user(request)
    jobs = queries.visible_to(user).select_related("patient", "site", "requested_by").prefetch_related("studies")
    rows = [describe_job(job) for job in jobs.order_by("-requested_at")[:100]]
    is_part = request.headers.get("HX-Target") == "disc-rows"
    context = {"rows": rows, "zone": zone_of(user), "media": DiscJob.Medium.choices}
    response = render(request, "discs/_rows.html" if is_part else "discs/desk.html", context)
    response["Cache-Control"] = "no-store"
    return response


def study_panel(request: HttpRequest, study: Study) -> dict[str, Any] | None:
    """The form to order a disc of this study, with the patient's other visible studies to choose."""
    return _form(request, study.patient, study.pk)


def patient_panel(request: HttpRequest, patient: Patient) -> dict[str, Any] | None:
    """The form to order a disc of a patient's studies."""
    return _form(request, patient, None)


def _form(request: HttpRequest, patient: Patient, chosen: int | None) -> dict[str, Any] | None:
    user = the_user(request)
    if not can(user, Capability.BURN):
        return None
    studies = visible_studies(user).filter(patient=patient).select_related("site").order_by("-started_at", "-pk")
    if not studies:
        return None
    return {
        "disc_studies": studies,
        "chosen_study": chosen,
        "media": DiscJob.Medium.choices,
        "zone": zone_of(user),
    }


@requires(Capability.BURN)
@require_POST
def order(request: HttpRequest) -> HttpResponse:
    """Order a disc of the chosen studies."""
    user = the_user(request)
    keys = [int(key) for key in request.POST.getlist("studies") if key.isdecimal()]
    studies = list(visible_studies(user).filter(pk__in=keys))
    if len(studies) != len(set(keys)):
        raise Http404
    try:
        actions.order(
            studies,
            user,
            medium=request.POST.get("medium", "cd"),
            with_reports=bool(request.POST.get("with_reports")),
            request=request,
        )
    except PermanentError as error:
        messages.error(request, advice(error.code))
    return redirect("discs")


@requires(Capability.BURN)
@require_POST
def cancel(request: HttpRequest, pk: int) -> HttpResponse:
    """Give up a job."""
    job = _visible_job(request, pk)
    try:
        actions.cancel(job, the_user(request), request=request)
    except PermanentError as error:
        messages.error(request, advice(error.code))
    return redirect("discs")


@requires(Capability.BURN)
@require_POST
def retry(request: HttpRequest, pk: int) -> HttpResponse:
    """Try a failed job again, perhaps on another medium."""
    job = _visible_job(request, pk)
    try:
        actions.retry(job, the_user(request), medium=request.POST.get("medium", ""), request=request)
    except PermanentError as error:
        messages.error(request, advice(error.code))
    return redirect("discs")


async def download(request: HttpRequest, pk: int) -> HttpResponseBase:
    """The verified image, streamed; every download is recorded."""
    if request.method != "GET":
        return HttpResponse(status=405, headers={"Allow": "GET"})
    prepared = await sync_to_async(_download)(request, pk)
    if isinstance(prepared, HttpResponseBase):
        return prepared
    job, path = prepared
    response = StreamingHttpResponse(_pieces(path), content_type="application/x-iso9660-image")
    response["Content-Length"] = str(path.stat().st_size)
    response["Content-Disposition"] = f'attachment; filename="regis-disc-{job.pk}.iso"'
    response["Cache-Control"] = "no-store"
    return response


def _download(request: HttpRequest, pk: int) -> HttpResponseBase | tuple[DiscJob, Path]:
    if not request.user.is_authenticated:
        return to_login(request)
    if not can(request.user, Capability.BURN):
        raise PermissionDenied
    job = _visible_job(request, pk)
    path = Path(job.image_path)
    if job.status != DiscJob.Status.COMPLETED or not path.is_file():
        raise Http404
    record(
        "disc.downloaded",
        request=request,
        entity=job,
        patient_key=job.patient_id,
        detail={"sha256": job.image_sha256},
    )
    return job, path


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    file = await asyncio.to_thread(path.open, "rb")
    try:
        while piece := await asyncio.to_thread(file.read, _CHUNK):
            yield piece
    finally:
        await asyncio.to_thread(file.close)


def _visible_job(request: HttpRequest, pk: int) -> DiscJob:
    return get_object_or_404(queries.visible_to(the_user(request)).select_related("patient", "site"), pk=pk)
