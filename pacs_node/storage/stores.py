"""The storages of this process, chosen by URL."""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import cast
from urllib.parse import unquote, urlsplit

from pacs_node.config import config
from pacs_node.storage.filesystem import FilesystemStorage
from pacs_node.storage.watermarks import Space, Watermarks
from standards.errors import PermanentError


def _open(url: str, folder: Path, keys: Path, *, cache_bytes: int, watermarks: Watermarks) -> FilesystemStorage:
    parts = urlsplit(url)
    if not url:
        return FilesystemStorage(folder, watermarks=watermarks)
    if parts.scheme == "file":
        return FilesystemStorage(Path(unquote(parts.path)), watermarks=watermarks)
    if parts.scheme == "s3":
        # Its client costs 20 MB of memory and a tenth of a second, so only nodes that use S3 load it.
        s3 = import_module("pacs_node.storage.s3")
        return cast(FilesystemStorage, s3.open_s3(url, folder, keys, cache_bytes=cache_bytes, watermarks=watermarks))
    raise PermanentError("invalid-setting", f"a storage of kind {parts.scheme!r} is not known: s3://… or file://…")


_recallers: list[Callable[[str], bool]] = []


def on_missing(recall: Callable[[str], bool]) -> None:
    """Have ``recall(key)`` asked for a file that is not on the main storage; it answers whether it is there now."""
    _recallers.append(recall)


def _recall(key: str) -> bool:
    return any(recall(key) for recall in _recallers)


@cache
def storage() -> FilesystemStorage:
    """The storage that instances are received into. Raises: PermanentError("invalid-setting")."""
    settings = config()
    store = _open(
        settings.storage_url,
        settings.storage_root,
        settings.storage_keys or settings.data_dir / "secrets" / "storage.keys",
        cache_bytes=settings.storage_cache_bytes,
        watermarks=Watermarks(
            Space.parse(settings.refuse_below), Space.parse(settings.accept_above), Space.parse(settings.tier_below)
        ),
    )
    store.recall = _recall
    return store


@cache
def institution() -> FilesystemStorage | None:
    """The institution's storage that copies go to, if there is one. Raises: PermanentError("invalid-setting")."""
    settings = config()
    if not settings.institution_url:
        return None
    return _open(
        settings.institution_url,
        settings.data_dir / "institution",
        settings.institution_keys or settings.data_dir / "secrets" / "institution.keys",
        cache_bytes=0,
        watermarks=Watermarks(Space()),
    )
