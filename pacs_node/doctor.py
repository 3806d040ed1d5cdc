"""What is wrong with this node, in sentences."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cryptography import x509
from django.db import Error as DatabaseError
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from gateway.models import JoinState
from gateway.proxy import rules
from pacs_node.clinic.models import ApplicationEntity, RefusedAssociation
from pacs_node.config import config
from pacs_node.storage.models import Finding as StorageFinding
from pacs_node.storage.models import VerifyRound
from pacs_node.storage.stores import institution, storage
from standards import charsets
from standards.errors import PermanentError, RegisError


@dataclass(frozen=True)
class Finding:
    """One check: what it looked at, whether it is well, and the sentence for a person."""

    about: str
    well: bool
    sentence: str


def findings() -> list[Finding]:
    """Every check, in the order a person should read them; later ones need the database."""
    database = _database()
    checks: list[Callable[[], Finding]] = [_storage, _institution, _settings, _certificate, _dicom_port, _http_port]
    if config().proxy_pacs_host:
        checks += [_old_pacs, _proxy_rules]
    if database.well:
        checks += [_stored_files, _registry, _refusals, _centre]
    return [database, *(check() for check in checks)]


def _database() -> Finding:
    about = "database"
    try:
        waiting = MigrationExecutor(connection).migration_plan(MigrationExecutor(connection).loader.graph.leaf_nodes())
    except DatabaseError as error:
        return Finding(about, False, f"The database does not answer ({type(error).__name__}).")
    if waiting:
        return Finding(about, False, f"The database lacks {len(waiting)} migrations: run migrate.")
    return Finding(about, True, f"The database ({connection.vendor}) answers and is up to date.")


def _storage() -> Finding:
    about = "storage"
    try:
        store = storage()
        path = store.new_incoming()
        path.write_bytes(b"regis")
        path.unlink()
        store.has_study("0")  # an S3 store must answer
    except RegisError as error:
        if error.code == "storage-full":
            return Finding(about, False, f"The storage is nearly full, new images are refused: {error.detail}.")
        return Finding(about, False, f"The storage does not work: {error}.")
    except OSError as error:
        return Finding(about, False, f"The storage {config().storage_root} cannot be written: {error.strerror}.")
    return Finding(about, True, f"The storage can be written, {store.free_bytes() // 1_000_000_000} GB are free.")


def _institution() -> Finding:
    about = "institution"
    try:
        store = institution()
        if store is not None:
            store.has_study("0")
            store.new_incoming()
    except (RegisError, OSError) as error:
        return Finding(about, False, f"The institution's storage does not work: {error}.")
    return Finding(
        about, True, "No storage of the institution is set." if store is None else "The institution's works."
    )


def _stored_files() -> Finding:
    about = "stored files"
    count = StorageFinding.objects.filter(resolved_at=None).count()
    if count:
        return Finding(about, False, f"{count} stored files are damaged, missing or unexplained: run verify --once.")
    round_ = VerifyRound.objects.filter(finished_at__isnull=False).first()
    if round_ is None or round_.finished_at is None:
        return Finding(about, True, "Stored files have not been re-read yet; the gateway process does it slowly.")
    return Finding(about, True, f"All stored files were re-read by {round_.finished_at:%Y-%m-%d %H:%M} UTC; all whole.")


def _settings() -> Finding:
    about = "settings"
    try:
        ZoneInfo(config().time_zone)
    except (ZoneInfoNotFoundError, ValueError):
        return Finding(about, False, f"There is no time zone {config().time_zone!r}.")
    if not charsets.is_known(config().default_character_set):
        return Finding(about, False, f"There is no character set {config().default_character_set!r}.")
    if not 1 <= len(config().ae_title) <= 16:
        return Finding(about, False, f"The AE title {config().ae_title!r} has not 1 to 16 characters.")
    return Finding(about, True, f"This is {config().name} ({config().kind}), AE title {config().ae_title}.")


def _certificate() -> Finding:
    about = "certificate"
    path = config().tls_certificate
    if path is None or not config().https_port:
        return Finding(about, True, "HTTPS is not served.")
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(about, False, f"The certificate {path} cannot be read: {error}.")
    days = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    if days < 14:
        return Finding(about, False, f"The certificate {path} is valid for {days} more days.")
    return Finding(about, True, f"The certificate is valid for {days} more days.")


def _answers(about: str, host: str, port: int) -> Finding:
    if not port:
        return Finding(about, True, f"No {about} is configured.")
    try:
        socket.create_connection((host, port), timeout=3).close()
    except OSError as error:
        return Finding(about, False, f"Nothing answers on {host}:{port} ({about}): {error.strerror or error}.")
    return Finding(about, True, f"The {about} {host}:{port} answers.")


def _old_pacs() -> Finding:
    return _answers("old PACS behind the proxy", config().proxy_pacs_host, config().proxy_pacs_port)


def _proxy_rules() -> Finding:
    about = "proxy rules"
    path = config().proxy_rules
    if path is None:
        return Finding(about, True, "The proxy has no rules: everything passes, nothing is copied.")
    try:
        found = rules.load(path)
    except PermanentError as error:
        return Finding(about, False, f"The rules of the proxy: {error.detail}.")
    except OSError as error:
        return Finding(about, False, f"The rules of the proxy, {path}, cannot be read: {error.strerror}.")
    return Finding(about, True, f"The rules of the proxy hold together ({len(found.rules)}).")


def _dicom_port() -> Finding:
    return _answers("DICOM port", config().dicom_host, config().dicom_port)


def _http_port() -> Finding:
    return _answers("HTTP port", config().http_host, config().http_port)


def _registry() -> Finding:
    count = ApplicationEntity.objects.count()
    if not count:
        return Finding("devices", False, "No device is registered: everyone is refused. Admit one by admit AE_TITLE.")
    return Finding("devices", True, f"{count} application entities are registered.")


def _refusals() -> Finding:
    refused = RefusedAssociation.objects.order_by("-last_at").first()
    if refused is None:
        return Finding("refusals", True, "Nobody was refused.")
    return Finding(
        "refusals",
        True,
        f"{refused.calling_ae_title} at {refused.address} was refused {refused.attempts} times, last "
        f"{refused.last_at:%Y-%m-%d %H:%M} UTC: {refused.reason}.",
    )


def _centre() -> Finding:
    state = JoinState.objects.first()
    if state is None:
        return Finding("centre", True, "This node has not joined a region; it works alone.")
    seen = f"last heard {state.centre_seen_at:%Y-%m-%d %H:%M} UTC" if state.centre_seen_at else "never heard"
    if state.last_error:
        return Finding("centre", False, f"The centre {state.centre_url} was {seen}; {state.last_error}.")
    return Finding("centre", True, f"Joined to {state.centre_url}, {seen}.")
