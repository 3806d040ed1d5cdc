"""``doctor``: look at everything the centre stands on and say what to do about what is wrong."""

import shutil
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import redis
from cryptography import x509
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor

from ris_central.accounts.models import Role, User
from ris_central.audit import sealer
from ris_central.config import CentreConfig, config
from ris_central.federation.models import Node
from ris_central.monitoring import queries

Finding = tuple[bool, str]


class Command(BaseCommand):
    """Check the centre."""

    help = "Check database, migrations, redis, worker, disk, certificates, audit chain and nodes. Exits 1 on a fault."

    def handle(self, *args: Any, **options: Any) -> None:
        """Print a line a check."""
        faults = 0
        for good, text in findings(config()):
            faults += not good
            self.stdout.write(f"{'ok   ' if good else 'FAULT'} {text}")
        if faults:
            raise CommandError(f"{faults} to look after.")


def findings(settings: CentreConfig) -> Iterator[Finding]:
    """One sentence a check; those about data only when the database answers."""
    free = shutil.disk_usage(settings.data_dir).free
    yield free > queries.LOW_DISK, f"{free / 1e9:.0f} GB free at {settings.data_dir}"
    yield from _certificates(settings)
    try:
        with redis.Redis.from_url(settings.redis_url, socket_timeout=3) as broker:
            broker.ping()
        yield True, "redis answers"
    except redis.RedisError as error:
        yield False, f"redis does not answer: {error}"
    try:
        plan = MigrationExecutor(connection).migration_plan(MigrationExecutor(connection).loader.graph.leaf_nodes())
    except DatabaseError as error:
        yield False, f"the database does not answer: {error}".strip()
        return
    yield not plan, f"{len(plan)} migrations wait: run migrate" if plan else "the database is up to date"
    if plan:
        return
    yield queries.health()["worker"], "the worker's heartbeat is fresh (else start: run worker)"
    admins = User.objects.filter(role=Role.ADMINISTRATOR, is_active=True).count()
    yield admins > 0, f"{admins} administrators (make one: adduser NAME)"
    verdict = sealer.verify()
    chain = f"broken at row {verdict.broken_at}" if verdict.broken_at else f"holds, {verdict.checked} rows"
    yield verdict.broken_at is None, f"the audit chain {chain}"
    for node in Node.objects.filter(revoked_at=None).exclude(joined_at=None).order_by("name"):
        state = queries.state_of(node)
        seen = f"{node.last_seen_at:%Y-%m-%d %H:%M} UTC" if node.last_seen_at else "never"
        yield state.state == "ok", f"node {node.name}: heard {seen}, {state.deliveries_waiting} deliveries wait"


def _certificates(settings: CentreConfig) -> Iterator[Finding]:
    if not settings.https_port:
        yield True, "HTTPS is not served (nodes need it, unless a proxy in front does it)"
        return
    if settings.tls_certificate is None or settings.tls_key is None:
        yield False, "HTTPS needs REGIS_CENTRE_TLS_CERTIFICATE and REGIS_CENTRE_TLS_KEY"
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(settings.tls_certificate, settings.tls_key)
        certificate = x509.load_pem_x509_certificate(settings.tls_certificate.read_bytes())
    except (OSError, ValueError) as error:
        yield False, f"the TLS certificate cannot be used: {error}"
        return
    left = (certificate.not_valid_after_utc - datetime.now(UTC)).days
    yield left > 14, f"the TLS certificate is good for {left} days"
