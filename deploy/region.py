"""The demo region on paper: its sites, nodes, devices and people, and which port is whose."""

import json
import secrets
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.processes import write_private


@dataclass(frozen=True)
class Modality:
    """A device that a node knows: what it is called, and the character set it speaks."""

    aet: str
    charset: str
    modality: str
    name: str


@dataclass(frozen=True)
class Node:
    """A node of the plan; ports are offsets from the region's first port."""

    name: str
    site: str
    kind: str
    aet: str
    offset: int
    modalities: tuple[Modality, ...] = ()


@dataclass(frozen=True)
class Person:
    """Somebody who logs in."""

    username: str
    role: str
    site: str
    last_name: str
    first_name: str
    position: str
    language: str = "ru"


SITES: list[dict[str, str]] = [
    {
        "code": "centre",
        "name": "Региональный центр лучевой диагностики",
        "kind": "centre",
        "address": "г. Приозёрск, ул. Центральная, 1",
        "phone": "+7 000 000-00-01",
        "time_zone": "Europe/Moscow",
        "accession_prefix": "C",
        "issuer_of_patient_id": "REGION",
    },
    {
        "code": "clinic-a",
        "name": "Городская больница № 1",
        "kind": "own_pacs",
        "address": "г. Приозёрск, ул. Больничная, 12",
        "phone": "+7 000 000-00-11",
        "time_zone": "Europe/Moscow",
        "accession_prefix": "A",
        "issuer_of_patient_id": "CLINIC-A",
    },
    {
        "code": "clinic-b",
        "name": "Районная больница «Еловая»",
        "kind": "own_pacs",
        "address": "пос. Еловый, ул. Лесная, 3",
        "phone": "+7 000 000-00-12",
        "time_zone": "Europe/Samara",
        "accession_prefix": "B",
        "issuer_of_patient_id": "CLINIC-B",
    },
    {
        "code": "clinic-c",
        "name": "Поликлиника № 7",
        "kind": "gateway",
        "address": "г. Приозёрск, пр. Мира, 70",
        "phone": "+7 000 000-00-13",
        "time_zone": "Europe/Moscow",
        "accession_prefix": "G",
        "issuer_of_patient_id": "CLINIC-C",
    },
    {
        "code": "reference",
        "name": "Референс-центр лучевой диагностики",
        "kind": "consultant",
        "address": "г. Приозёрск, наб. Озёрная, 5",
        "phone": "+7 000 000-00-14",
        "time_zone": "Europe/Moscow",
        "accession_prefix": "X",
        "issuer_of_patient_id": "REFERENCE",
    },
]

NODES = [
    Node("archive", "centre", "archive", "ARCHIVE", 10),
    Node(
        "clinic-a",
        "clinic-a",
        "clinic",
        "CLINIC_A",
        20,
        (
            Modality("CT_A", "ISO_IR 144", "CT", "КТ, кабинет 4"),
            Modality("CR_A", "ISO_IR 144", "CR", "Рентген, кабинет 2"),
            Modality("US_A", "ISO_IR 192", "US", "УЗИ, кабинет 9"),
        ),
    ),
    Node(
        "clinic-b",
        "clinic-b",
        "clinic",
        "CLINIC_B",
        30,
        (
            Modality("MR_B", "ISO_IR 192", "MR", "МРТ"),
            Modality("DX_B", "ISO_IR 100", "DX", "Рентген (только латиница)"),
        ),
    ),
    Node("clinic-c", "clinic-c", "gateway", "CLINIC_C", 40, (Modality("MG_C", "ISO_IR 144", "MG", "Маммограф"),)),
]

PEOPLE = [
    Person("admin", "administrator", "centre", "Главный", "Администратор", "Администратор региона"),
    Person("engineer", "engineer", "centre", "Сетевой", "Инженер", "Инженер"),
    Person("radiologist", "radiologist", "clinic-a", "Снимков", "Лев Рентгенович", "Врач-рентгенолог"),
    Person("registrar", "registrar", "clinic-a", "Талонова", "Вера Очередьевна", "Регистратор"),
    Person("clerk", "clerk", "clinic-a", "Дисков", "Иван Архивович", "Выдача дисков"),
    Person("radiologist-b", "radiologist", "clinic-b", "Елова", "Анна Магнитовна", "Врач-рентгенолог"),
    Person("registrar-b", "registrar", "clinic-b", "Лесная", "Ольга Журналовна", "Регистратор"),
    Person("registrar-c", "registrar", "clinic-c", "Окошкина", "Зоя Талоновна", "Регистратор"),
    Person("radiologist-c", "radiologist", "clinic-c", "Мирова", "Нина Плёночна", "Врач-рентгенолог"),
    Person("expert", "expert", "reference", "Мудрецов", "Пётр Справочный", "Эксперт, профессор"),
]


@dataclass(frozen=True)
class Secrets:
    """What the demo invents once and keeps in a file that only its owner reads."""

    centre_database: str
    archive_database: str
    api_token: str
    password: str
    join_codes: dict[str, str]

    @classmethod
    def of(cls, directory: Path) -> "Secrets":
        """The secrets of a region, made at its first start."""
        file = directory / "secrets.json"
        if not file.exists():
            fresh = cls(
                centre_database=secrets.token_urlsafe(18),
                archive_database=secrets.token_urlsafe(18),
                api_token=secrets.token_urlsafe(32),
                password=f"demo-{secrets.token_hex(3)}",
                join_codes={node.name: secrets.token_hex(10) for node in NODES},
            )
            write_private(file, json.dumps(asdict(fresh), indent=1))
        return cls(**json.loads(file.read_text(encoding="utf-8")))


@dataclass(frozen=True)
class Ports:
    """Every port of a region, counted from its first."""

    base: int

    @property
    def centre(self) -> dict[str, int]:
        """Ports of the centre and of the servers it uses."""
        names = ("centre http", "centre https", "centre hl7", "postgres", "valkey")
        return {name: self.base + number for number, name in enumerate(names)}

    def node(self, node: Node) -> dict[str, int]:
        """Ports of a node; `link` is its way out."""
        return {
            name: self.base + node.offset + number for number, name in enumerate(("http", "https", "dicom", "link"))
        }

    def all(self) -> dict[str, int]:
        """Every port by what it is for."""
        found = dict(self.centre)
        for node in NODES:
            found |= {f"{node.name} {name}": port for name, port in self.node(node).items()}
        return found


def _sites_of(person: Person) -> list[str]:
    """The engineer looks after every site, the others work at one."""
    return [site["code"] for site in SITES] if person.role == "engineer" else [person.site]


def seed(keep: Secrets) -> dict[str, Any]:
    """What `regis centre seed-demo --file` takes; words are those of the centre's models."""
    return {
        "sites": SITES,
        "nodes": [
            {"name": node.name, "site": node.site, "kind": node.kind, "join_code": keep.join_codes[node.name]}
            for node in NODES
        ],
        "devices": [
            {
                "site": node.site,
                "node": node.name,
                "name": device.name,
                "ae_title": device.aet,
                "modality": device.modality,
                "character_set": device.charset,
                "address": "127.0.0.1",
            }
            for node in NODES
            for device in node.modalities
        ],
        "users": [{**asdict(person), "password": keep.password, "sites": _sites_of(person)} for person in PEOPLE],
        "api_tokens": [{"username": "admin", "name": "demo", "token": keep.api_token}],
    }


@dataclass
class RegionInfo:
    """A running region, as the story and tests use it.

    Attributes:
        directory: where everything of it lies.
        document: what region.json says.
        cut_link: breaks a node's way to the rest of the region, by the node's name.
        restore_link: mends it.
    """

    directory: Path
    document: dict[str, Any]
    cut_link: Callable[[str], None] = field(repr=False)
    restore_link: Callable[[str], None] = field(repr=False)


def document(ports: Ports, keep: Secrets, authority: Path, pids: dict[str, int]) -> dict[str, Any]:
    """The content of region.json."""
    centre = ports.centre
    nodes = []
    for node in NODES:
        own = ports.node(node)
        nodes.append(
            {
                "name": node.name,
                "kind": node.kind,
                "site": node.site,
                "url": f"http://127.0.0.1:{own['http']}",
                "https_url": f"https://127.0.0.1:{own['https']}",
                "aet": node.aet,
                "host": "127.0.0.1",
                "dicom_port": own["dicom"],
                "modalities": [
                    {"aet": device.aet, "charset": device.charset, "modality": device.modality}
                    for device in node.modalities
                ],
            }
        )
    return {
        "centre": {
            "url": f"http://127.0.0.1:{centre['centre http']}",
            "https_url": f"https://127.0.0.1:{centre['centre https']}",
            "hl7": {"host": "127.0.0.1", "port": centre["centre hl7"]},
            "api_token": keep.api_token,
        },
        "nodes": nodes,
        "sites": [{"code": site["code"], "name": site["name"], "kind": site["kind"]} for site in SITES],
        "users": [
            {"username": person.username, "password": keep.password, "role": person.role, "site": person.site}
            for person in PEOPLE
        ],
        "ca": str(authority),
        "pids": pids,
    }
