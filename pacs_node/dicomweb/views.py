"""Addresses that answer more than one method, and those that are none."""

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_http_methods

from pacs_node.dicomweb import qido, stow, wado
from pacs_node.dicomweb.deletion import delete
from pacs_node.dicomweb.permissions import Reach, guarded
from standards.errors import PermanentError


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST"])
def studies(request: HttpRequest) -> HttpResponseBase:
    """Search with GET, store with POST."""
    return stow.store(request) if request.method == "POST" else qido.studies(request)


@csrf_exempt
@require_http_methods(["GET", "HEAD", "POST", "DELETE"])
def study(request: HttpRequest, study: str) -> HttpResponseBase:
    """Retrieve with GET, store into with POST, delete with DELETE."""
    return stow.store(request, study=study) if request.method == "POST" else below(request, study=study)


@csrf_exempt
@require_http_methods(["GET", "HEAD", "DELETE"])
def below(request: HttpRequest, **at: str) -> HttpResponseBase:
    """Retrieve with GET, delete with DELETE."""
    return delete(request, **at) if request.method == "DELETE" else wado.instances(request, **at)


@guarded("read")
def nothing(_request: HttpRequest, _reach: Reach) -> HttpResponse:
    """What is not an address, said only to who may be here."""
    raise PermanentError("not-found", "There is no such address here.")
