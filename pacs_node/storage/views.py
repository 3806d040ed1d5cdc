"""The page of the node's storage."""

from django.contrib.auth.decorators import login_required
from django.contrib.auth.models import User
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_GET

from pacs_node.clinic.permissions import is_engineer
from pacs_node.storage.queries import storage_state


@login_required
@require_GET
def storage_page(request: HttpRequest) -> HttpResponse:
    """What verify found, where studies lie, what is pinned and recompressed."""
    assert isinstance(request.user, User)
    context = {"state": storage_state(), "engineer": is_engineer(request.user)}
    return render(request, "storage/storage.html", context)
