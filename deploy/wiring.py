"""What each part of the demo region is told: its settings, its command, and how one sees that it works."""

from pathlib import Path

from deploy import postgres, valkey
from deploy.health import both, http_ok, https_ok, listens, worker_answers
from deploy.link import Link
from deploy.procfile import read
from deploy.region import SITES, Node, Ports, Secrets
from deploy.supervisor import Part

ROOT = Path(__file__).parent.parent
PROCESSES = read()


class Wiring:
    """The region in one directory on one range of ports, as parts that a supervisor can start."""

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        secrets: Secrets,
        authority: Path,
        certificates: dict[str, tuple[Path, Path]],
        links: dict[str, Link],
    ) -> None:
        self.directory = directory
        self.ports = ports
        self.secrets = secrets
        self.authority = authority
        self.certificates = certificates
        self.links = links

    def _tls(self, prefix: str, name: str) -> dict[str, str]:
        certificate, key = self.certificates[name]
        return {
            f"{prefix}TLS_CERTIFICATE": str(certificate),
            f"{prefix}TLS_KEY": str(key),
            f"{prefix}TLS_CA": str(self.authority),
        }

    def _service_environment(self) -> dict[str, str]:
        return {
            "REGIS_POSTGRES_DIRECTORY": str(self.directory / "postgres"),
            "REGIS_POSTGRES_PORT": str(self.ports.centre["postgres"]),
            "REGIS_VALKEY_DIRECTORY": str(self.directory / "valkey"),
            "REGIS_VALKEY_PORT": str(self.ports.centre["valkey"]),
        }

    def _database(self, name: str, password: str) -> str:
        return f"postgresql://{name}:{password}@127.0.0.1:{self.ports.centre['postgres']}/{name}"

    @property
    def superuser(self) -> str:
        """URL of PostgreSQL's superuser; the cluster must have been made."""
        return postgres.superuser_url(self.directory / "postgres", self.ports.centre["postgres"])

    @property
    def _broker(self) -> str:
        return valkey.url(self.directory / "valkey", self.ports.centre["valkey"])

    def centre_environment(self) -> dict[str, str]:
        """The centre's settings."""
        ports = self.ports.centre
        return {
            "REGIS_CENTRE_DATA_DIR": str(self.directory / "centre"),
            "REGIS_CENTRE_REGION_NAME": "Приозёрский край",
            "REGIS_CENTRE_STUDY_QUIET_SECONDS": "20",
            "REGIS_CENTRE_HL7_DEFAULT_SITE": "clinic-a",
            "REGIS_CENTRE_HTTP_PORT": str(ports["centre http"]),
            "REGIS_CENTRE_HTTPS_PORT": str(ports["centre https"]),
            "REGIS_CENTRE_HL7_PORT": str(ports["centre hl7"]),
            "REGIS_CENTRE_DATABASE_URL": self._database("regis_centre", self.secrets.centre_database),
            "REGIS_CENTRE_REDIS_URL": self._broker,
            "REGIS_CENTRE_VENDOR_DIR": str(ROOT / "var" / "vendor"),
            **self._tls("REGIS_CENTRE_", "centre"),
        }

    def node_environment(self, node: Node) -> dict[str, str]:
        """A node's settings; the archive keeps its index in PostgreSQL, clinics in SQLite."""
        ports = self.ports.node(node)
        site = next(site for site in SITES if site["code"] == node.site)
        found = {
            "REGIS_NODE_DATA_DIR": str(self.directory / node.name),
            "REGIS_NODE_NAME": node.name,
            "REGIS_NODE_KIND": node.kind,
            "REGIS_NODE_AE_TITLE": node.aet,
            "REGIS_NODE_HTTP_PORT": str(ports["http"]),
            "REGIS_NODE_HTTPS_PORT": str(ports["https"]),
            "REGIS_NODE_DICOM_PORT": str(ports["dicom"]),
            "REGIS_NODE_PROXY_URL": self.links[node.name].url,
            "REGIS_NODE_TIME_ZONE": site["time_zone"],
            "REGIS_NODE_VENDOR_DIR": str(ROOT / "var" / "vendor"),
            **self._tls("REGIS_NODE_", node.name),
        }
        if node.kind == "archive":
            found["REGIS_NODE_DATABASE_URL"] = self._database("regis_archive", self.secrets.archive_database)
        return found

    def infrastructure(self) -> list[Part]:
        """PostgreSQL and the Redis-compatible server."""
        environment = self._service_environment()

        def database_answers() -> bool:
            return (self.directory / "postgres" / "password").exists() and postgres.answers(self.superuser)

        def broker_answers() -> bool:
            return (self.directory / "valkey" / "password").exists() and valkey.answers(self._broker)

        return [
            Part("postgres", PROCESSES["postgres"], environment, database_answers),
            Part("valkey", PROCESSES["valkey"], environment, broker_answers),
        ]

    def centre_parts(self) -> list[Part]:
        """The centre's processes."""
        environment, ports = self.centre_environment(), self.ports.centre
        web = both(http_ok(ports["centre http"]), https_ok(ports["centre https"], str(self.authority)))
        return [
            Part("centre-web", PROCESSES["centre-web"], environment, web),
            Part("centre-worker", PROCESSES["centre-worker"], environment, worker_answers(self._broker)),
            Part("centre-hl7", PROCESSES["centre-hl7"], environment, listens(ports["centre hl7"])),
        ]

    def node_parts(self, node: Node) -> list[Part]:
        """A node's two processes."""
        environment, ports = self.node_environment(node), self.ports.node(node)
        pacs = both(http_ok(ports["http"]), https_ok(ports["https"], str(self.authority)), listens(ports["dicom"]))
        return [
            Part(f"{node.name}-pacs", PROCESSES["node-pacs"], environment, pacs),
            Part(f"{node.name}-gateway", PROCESSES["node-gateway"], environment, lambda: True),
        ]
