"""Instances in an S3-compatible store, under the same keys as on a filesystem.

Received on the local disk, flushed there, uploaded with a checksum that the store verifies, and confirmed by the store
before anybody is answered. The local folder holds what is being received and a bounded cache for readers that need a
file. Journals are objects too, one for each piece that was added.
"""

import base64
import hashlib
import io
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final, TypeVar, cast
from urllib.parse import parse_qs, urlsplit

import structlog
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

from pacs_node.storage.filesystem import FilesystemStorage, fsync_path
from pacs_node.storage.incoming import Incoming
from pacs_node.storage.layout import ASIDE, STUDIES, is_instance_key, is_study_folder, study_key
from pacs_node.storage.ranges import ObjectReader
from pacs_node.storage.watermarks import Watermarks
from standards.errors import PermanentError, TransientError

log = structlog.get_logger(__name__)
T = TypeVar("T")

_WHOLE: Final = 1 << 30
"""Larger files go up in parts."""
_PART: Final = 64 << 20
_WINDOW: Final = 1 << 20
_IN_USE_SECONDS: Final = 120.0
_FULL: Final = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "EntityTooLarge"}
_TAKEN: Final = {"PreconditionFailed", "412"}
_ABSENT: Final = {"NoSuchKey", "404", "NotFound"}


def open_s3(
    url: str, folder: Path, keys: Path, *, cache_bytes: int, watermarks: Watermarks | None = None
) -> "S3Storage":
    """The storage at ``s3://bucket/prefix?endpoint=https://…&region=…&ca=FILE``; ``keys`` has two lines.

    Raises: PermanentError("invalid-setting").
    """
    parts = urlsplit(url)
    said = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if unknown := set(said) - {"endpoint", "region", "ca"}:
        raise PermanentError("invalid-setting", f"{', '.join(sorted(unknown))} in the S3 address")
    try:
        access, secret = keys.read_text(encoding="ascii").split()
    except (OSError, ValueError) as error:
        raise PermanentError("invalid-setting", f"{keys} does not hold an access key and a secret key") from error
    # Neither the environment nor the home folder is asked: a node has one configuration.
    session = Session(
        session_vars={
            name: (None, None, os.devnull if name.endswith("_file") else None, None)
            for name in ("profile", "config_file", "credentials_file", "ca_bundle")
        }
    )
    client = session.create_client(
        "s3",
        region_name=said.get("region", "us-east-1"),
        endpoint_url=said.get("endpoint"),
        aws_access_key_id=access,
        aws_secret_access_key=secret,
        verify=said.get("ca"),
        config=Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "max_attempts": 3},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=64,
            proxies={},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )
    bucket, prefix = parts.netloc, parts.path.strip("/")
    return S3Storage(
        client, bucket, f"{prefix}/" if prefix else "", folder, cache_bytes=cache_bytes, watermarks=watermarks
    )


class S3Storage(FilesystemStorage):
    """Storage in ``bucket`` below ``prefix``; ``root`` holds what is being received, and the cache."""

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        root: Path,
        *,
        cache_bytes: int,
        watermarks: Watermarks | None = None,
    ) -> None:
        super().__init__(root, watermarks=watermarks)
        self._client = client
        self._bucket = bucket
        self._prefix = prefix
        self._cache_bytes = cache_bytes
        self._cached: int | None = None
        self._cache_lock = threading.Lock()

    # Writing

    def place(self, incoming: Incoming | Path, key: str) -> bool:
        """Upload the file to ``key`` and have the store confirm it; False when the key is taken (the file stays)."""
        if isinstance(incoming, Path):
            fsync_path(incoming)
            path = incoming
        else:
            incoming.sync()
            path = incoming.path
        if not self._upload(path, key):
            return False
        if self._cache_bytes:
            with path.open("rb") as file:
                self._keep(file, key)
        if isinstance(incoming, Path):
            incoming.unlink(missing_ok=True)
        return True

    def _upload(self, path: Path, key: str) -> bool:
        size = path.stat().st_size
        try:
            with path.open("rb") as file:
                if size <= _WHOLE:
                    self._put(file, key)
                else:
                    self._put_in_parts(file, key)
        except ClientError as error:
            if _code(error) in _TAKEN:
                return False
            raise _translated(error) from error
        except BotoCoreError as error:
            raise _translated(error) from error
        confirmed = self._head(key)
        if confirmed is None or confirmed["ContentLength"] != size:
            raise TransientError("storage-unreachable", f"the store does not confirm {key}")
        return True

    def _put(self, file: BinaryIO, key: str) -> None:
        digest = hashlib.sha256()
        while chunk := file.read(_WINDOW):
            digest.update(chunk)
        file.seek(0)
        self._client.put_object(
            Bucket=self._bucket,
            Key=self._prefix + key,
            Body=file,
            IfNoneMatch="*",
            ChecksumSHA256=base64.b64encode(digest.digest()).decode("ascii"),
        )

    def _put_in_parts(self, file: BinaryIO, key: str) -> None:
        at = {"Bucket": self._bucket, "Key": self._prefix + key}
        upload = self._client.create_multipart_upload(**at, ChecksumAlgorithm="SHA256")["UploadId"]
        try:
            parts: list[dict[str, Any]] = []
            while part := file.read(_PART):
                checksum = base64.b64encode(hashlib.sha256(part).digest()).decode("ascii")
                number = len(parts) + 1
                done = self._client.upload_part(
                    **at, UploadId=upload, PartNumber=number, Body=part, ChecksumSHA256=checksum
                )
                parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumSHA256": checksum})
            self._client.complete_multipart_upload(
                **at, UploadId=upload, MultipartUpload={"Parts": parts}, IfNoneMatch="*"
            )
        except BaseException:
            self._client.abort_multipart_upload(**at, UploadId=upload)
            raise

    def set_aside(self, key: str) -> str:
        """Copy the object out of the way for a person to look at, then delete it; where it lies now."""
        aside = f"{ASIDE}/{key.removeprefix(STUDIES + '/')}.{datetime.now(UTC):%Y%m%dT%H%M%S%f}"
        source = {"Bucket": self._bucket, "Key": self._prefix + key}
        self._ask(lambda: self._client.copy_object(Bucket=self._bucket, Key=self._prefix + aside, CopySource=source))
        self.remove(key)
        return aside

    def remove(self, key: str) -> None:
        """Delete the object and its cached file."""
        (self.root / key).unlink(missing_ok=True)
        if key.startswith((STUDIES, ASIDE)):
            self._ask(lambda: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))

    def append_journal(self, study_instance_uid: str, *lines: dict[str, Any]) -> None:
        """Add lines to the study's journal as one more object. Raises: TransientError("storage-unreachable")."""
        text = "".join(json.dumps(line, ensure_ascii=False, sort_keys=True) + "\n" for line in lines)
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex}.jsonl"
        key = f"{self._prefix}{study_key(study_instance_uid)}/journal/{name}"
        self._ask(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=text.encode("utf-8")))

    # Reading

    def open(self, key: str) -> BinaryIO:
        """The object at ``key``, read by ranges unless it is cached. Raises: as ``Storage.open``."""
        try:
            return (self.root / key).open("rb")
        except FileNotFoundError:
            return self.open_stored(key)

    def open_stored(self, key: str) -> BinaryIO:
        """The object itself, whatever the cache holds. Raises: as ``Storage.open``."""
        found = self._head(key)
        if found is None and self.recall is not None and self.recall(key):
            found = self._head(key)
        if found is None:
            raise PermanentError("instance-gone", f"{key} is not on the storage")
        raw = ObjectReader(self._range_reader(key), int(found["ContentLength"]))
        return cast(BinaryIO, io.BufferedReader(raw, _WINDOW))

    def _range_reader(self, key: str) -> Callable[[int, int], bytes]:
        def read(first: int, last: int) -> bytes:
            at = {"Bucket": self._bucket, "Key": self._prefix + key, "Range": f"bytes={first}-{last}"}
            return cast(bytes, self._ask(lambda: self._client.get_object(**at)["Body"].read()))

        return read

    def local_path(self, key: str) -> Path:
        """The object as a file in the cache, where it stays for minutes at least. Raises: as ``Storage.open``."""
        path = self.root / key
        try:
            os.utime(path)  # the cache lets go of what was asked for longest ago
        except FileNotFoundError:
            with self.open_stored(key) as stored:
                self._keep(stored, key)
        return path

    def exists(self, key: str) -> bool:
        """Whether the store holds an object at ``key``."""
        return self._head(key) is not None

    def modified(self, key: str) -> float:
        """When the object was stored."""
        found = self._head(key)
        return float(found["LastModified"].timestamp()) if found else 0.0

    def journal(self, study_instance_uid: str) -> Iterator[dict[str, Any]]:
        """The lines of all journal objects of the study, oldest first."""
        for key in sorted(self._list(f"{study_key(study_instance_uid)}/journal/")):
            at = {"Bucket": self._bucket, "Key": self._prefix + key}
            text: bytes = self._ask(lambda at=at: self._client.get_object(**at)["Body"].read())  # type: ignore[misc]
            yield from self._lines(text.splitlines(), study_instance_uid)

    def study_instance_uids(self, after: str = "") -> Iterator[str]:
        """Every study of which there is an object, in the order of ``layout.study_key``."""
        for parent in self._folders(f"{STUDIES}/"):
            if parent.rstrip("/") < after[: len(parent) - 1]:
                continue
            for folder in map(_without_slash, self._folders(parent)):
                if folder > after and is_study_folder(folder):
                    yield folder.rpartition("/")[2]

    def strays(self) -> Iterator[str]:
        """What lies among the studies' folders and is none of them."""
        parents = list(self._folders(f"{STUDIES}/"))
        for below in (f"{STUDIES}/", *parents):
            yield from (
                found["Key"].removeprefix(self._prefix)
                for page in self._pages(below, "/")
                for found in page.get("Contents", [])
                if not found["Key"].endswith("/")
            )
        for parent in parents:
            yield from (folder for folder in map(_without_slash, self._folders(parent)) if not is_study_folder(folder))

    def keys_of_study(self, study_instance_uid: str) -> Iterator[str]:
        """The keys of all instances of the study, variants last."""
        keys = [key for key in self._list(f"{study_key(study_instance_uid)}/") if is_instance_key(key)]
        yield from sorted(keys, key=lambda key: (key.split("/")[3] == "variants", key))

    def has_study(self, study_instance_uid: str) -> bool:
        """Whether there is any object of the study."""
        return next(self._list(f"{study_key(study_instance_uid)}/"), None) is not None

    def foreign(self, study_instance_uid: str) -> Iterator[str]:
        """Whatever lies below the study's key and is neither an instance nor a journal."""
        folder = study_key(study_instance_uid)
        for key in self._list(f"{folder}/"):
            if not is_instance_key(key) and not key.startswith(f"{folder}/journal/"):
                yield key

    def _list(self, below: str) -> Iterator[str]:
        for page in self._pages(below, ""):
            for found in page.get("Contents", []):
                yield found["Key"].removeprefix(self._prefix)

    def _folders(self, below: str) -> Iterator[str]:
        for page in self._pages(below, "/"):
            for found in page.get("CommonPrefixes", []):
                yield found["Prefix"].removeprefix(self._prefix)

    def _pages(self, below: str, delimiter: str) -> Iterator[dict[str, Any]]:
        at = {"Bucket": self._bucket, "Prefix": self._prefix + below, "Delimiter": delimiter}
        while True:
            page: dict[str, Any] = self._ask(lambda: self._client.list_objects_v2(**at))
            yield page
            if not page.get("IsTruncated"):
                return
            at["ContinuationToken"] = page["NextContinuationToken"]

    def _head(self, key: str) -> dict[str, Any] | None:
        try:
            found: dict[str, Any] = self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise _translated(error) from error
        except BotoCoreError as error:
            raise _translated(error) from error
        return found

    @staticmethod
    def _ask(call: Callable[[], T]) -> T:
        try:
            return call()
        except (ClientError, BotoCoreError, OSError) as error:
            raise _translated(error) from error

    # The cache

    def _keep(self, source: BinaryIO, key: str) -> None:
        """Put a file into the cache and let go of what was asked for longest ago."""
        target = self.root / key
        fresh = self.incoming / f"{os.getpid()}-{uuid.uuid4().hex}.cache"
        try:
            with fresh.open("xb") as file:
                while chunk := source.read(_WINDOW):
                    file.write(chunk)
            size = fresh.stat().st_size
            target.parent.mkdir(parents=True, exist_ok=True)
            fresh.replace(target)
        except OSError as error:
            raise self._translated(error) from error
        finally:
            fresh.unlink(missing_ok=True)
        with self._cache_lock:
            if self._cached is None:
                self._cached = sum(path.stat().st_size for path in (self.root / STUDIES).rglob("*.dcm"))
            else:
                self._cached += size
            if self._cached > self._cache_bytes:
                self._trim()

    def _trim(self) -> None:
        files = sorted((path.stat().st_mtime, path) for path in (self.root / STUDIES).rglob("*.dcm"))
        left = sum(path.stat().st_size for _, path in files)
        for used, path in files:
            if left <= self._cache_bytes * 0.9 or used > time.time() - _IN_USE_SECONDS:
                break
            left -= path.stat().st_size
            path.unlink(missing_ok=True)
        self._cached = left


def _without_slash(folder: str) -> str:
    return folder.rstrip("/")


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _translated(error: Exception) -> Exception:
    if isinstance(error, ClientError):
        code = _code(error)
        if code in _FULL or error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 507:
            return TransientError("storage-full", f"the store is full: {code}")
        if code in _ABSENT:
            return PermanentError("instance-gone", "the store does not hold it")
        return TransientError("storage-unreachable", f"the store refuses: {code or error}")
    return TransientError("storage-unreachable", f"{type(error).__name__}: {error}"[:200])
