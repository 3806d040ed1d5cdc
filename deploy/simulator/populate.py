"""A day of work for a new region: people book through the centre, scanners ask their worklist and send images."""

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from deploy.people import Person, Refused, until
from deploy.region import RegionInfo
from deploy.simulator.acquisition import acquire
from deploy.simulator.scanner import Scanner, Sent, read_folder


@dataclass(frozen=True)
class Visit:
    """Somebody who comes to be examined: plainly fictional. ``hours`` from now; ``images`` 0 is still to come."""

    station: str
    name: str
    birth_date: str
    sex: str
    description: str
    hours: float
    images: int


DAY = [
    Visit("CT_A", "Кошкин^Мурзик^Барсикович", "1961-03-08", "M", "КТ головного мозга", -3, 24),
    Visit("CT_A", "Ёлкина^Снежана^Морозовна", "1984-12-31", "F", "КТ головного мозга", -2, 32),
    Visit("CT_A", "Небылицын^Иван^Вымыслович", "1975-04-01", "M", "КТ головного мозга", 1, 0),
    Visit("CR_A", "Примерова^Проба^Образцовна", "1990-06-15", "F", "Рентген грудной клетки", -2.5, 1),
    Visit("CR_A", "Сказкин^Емеля^Печников", "1958-01-19", "M", "Рентген грудной клетки", 1.5, 0),
    Visit("US_A", "Василисина^Премудра^Кощеевна", "1979-09-09", "F", "ЭхоКГ", -1.5, 24),
    Visit("MR_B", "Лукоморьев^Дуб^Златоцепович", "1969-06-06", "M", "МРТ коленного сустава", -2, 24),
    Visit("MR_B", "Тридевятова^Царевна^Лягушкина", "2001-05-05", "F", "МРТ коленного сустава", 1, 0),
    Visit("DX_B", "Колобков^Сдоба^Амбарович", "1999-02-14", "M", "Рентген грудной клетки", -1, 1),
    Visit("MG_C", "Рукавичкина^Варежка^Зимовна", "1966-11-11", "F", "Маммография", -1, 4),
]


def scanners(region: dict[str, Any]) -> dict[str, Scanner]:
    """Every device of a region by its AE title. ``region`` is region.json."""
    return {
        device["aet"]: Scanner(device["aet"], device["charset"], node["aet"], node["host"], node["dicom_port"])
        for node in region["nodes"]
        for device in node["modalities"]
    }


def book(person: Person, visit: Visit) -> dict[str, Any]:
    """Register the patient (once) and book the visit; the order as the centre answers it."""
    device = next(d for d in person.json("/api/v1/devices")["results"] if d["ae_title"] == visit.station)
    found = person.json("/api/v1/patients", q=visit.name.replace("^", " "))["results"]
    patient = (
        found[0]
        if found
        else person.send(
            "/api/v1/patients",
            {"name": visit.name, "birth_date": visit.birth_date, "sex": visit.sex, "site": device["site"]},
        )
    )
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    starts_at = now - timedelta(minutes=now.minute % 10) + timedelta(hours=visit.hours)
    booking = {
        "patient": patient["id"],
        "device": device["id"],
        "starts_at": starts_at.isoformat(),
        "description": visit.description,
        "minutes": 20,
    }
    order: dict[str, Any] = person.send("/api/v1/orders", booking)
    return order


def book_first_free(person: Person, visit: Visit) -> dict[str, Any]:
    """Book the visit at its hour or at the first free place of the day after it. Raises: Refused."""
    for attempt in range(72):
        try:
            return book(person, replace(visit, hours=visit.hours + attempt / 3))
        except Refused as refused:
            if "slot-taken" not in str(refused):
                raise
    raise Refused(f"{visit.station} has no free place for a whole day")


def examine(scanner: Scanner, order: dict[str, Any], images: int) -> Sent:
    """Find the order on the worklist, acquire it and send it."""
    accession = order["accession_number"]
    scheduled = until(
        f"{scanner.ae_title} finds {accession} on the worklist of {scanner.node_ae_title}",
        lambda: scanner.worklist(AccessionNumber=accession),
    )[0]
    return scanner.send(acquire(scheduled, images=images, station=scanner.ae_title))


def populate(info: RegionInfo, data: Path | None) -> None:
    """Book and acquire a day's work, or with ``data`` send the files of that folder from the first device.

    A second call on the same day does nothing.
    """
    stamp = info.directory / "populated"
    today = date.today().isoformat()
    if stamp.exists() and stamp.read_text(encoding="utf-8") == today:
        return
    region, devices = info.document, scanners(info.document)
    registrars = {user["site"]: user for user in region["users"] if user["role"] == "registrar"}
    site_of = {d["aet"]: node["site"] for node in region["nodes"] for d in node["modalities"]}
    for site, registrar in registrars.items():
        with Person(region["centre"]["url"], registrar["username"], registrar["password"]) as person:
            for visit in (visit for visit in DAY if site_of[visit.station] == site):
                order = book_first_free(person, visit)
                if visit.images and data is None:
                    examine(devices[visit.station], order, visit.images)
    if data is not None:
        send_folder(next(iter(devices.values())), data)
    stamp.write_text(today, encoding="utf-8")


def send_folder(scanner: Scanner, data: Path) -> tuple[Sent, list[Dataset]]:
    """Send the DICOM files of a folder as they are; what cannot be sent is named and the rest goes on.

    Returns what became of them, and the instances that could be read.
    """
    usable, unusable = read_folder(data)
    for path, reason in unusable.items():
        print(f"  {path}: not sent, {reason}", flush=True)
    sent = scanner.send(usable)
    for uid, reason in sent.refused.items():
        print(f"  {uid}: refused, {reason}", flush=True)
    print(f"  {scanner.ae_title} sent {len(sent.stored)} of {len(usable) + len(unusable)} files of {data}", flush=True)
    return sent, usable
