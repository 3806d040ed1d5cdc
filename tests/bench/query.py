"""Searches in an index of a million studies, by QIDO-RS and by C-FIND, beside Orthanc as large as it can be loaded.

Each request is timed from its first byte to the last one of its answer, over a connection or an association that is
kept open, with keys drawn at random from what is indexed. The indexes are filled once and kept under ``--dir``.
"""

import argparse
import secrets
import statistics
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from pydicom.dataset import Dataset
from pynetdicom.dsutils import encode

from pacs_node.dimse.calling import associate
from pacs_node.dimse.channel import Channel
from standards import upper_layer
from tests.bench._peers import program
from tests.bench._query_targets import ASKER, PLUGIN, ROOT, Keys, Target, connect, orthanc, regis

STUDY_ROOT_FIND: Final = "1.2.840.10008.5.1.4.1.2.2.1"
IMPLICIT: Final = "1.2.840.10008.1.2"
RETURNED: Final = (
    "StudyDate", "StudyTime", "AccessionNumber", "StudyDescription", "PatientName", "PatientBirthDate",
    "StudyInstanceUID", "ModalitiesInStudy",
)  # fmt: skip
LIMIT: Final = 101
"""What OHIF asks for."""
GOAL_MS: Final = 20.0
_PDU_HEAD: Final = struct.Struct(">BxL")
_PREFIX_LETTERS: Final = 6


KINDS: Final[dict[str, Callable[[Keys], Keys]]] = {
    "id": lambda study: {"PatientID": study["PatientID"]},
    "accession": lambda study: {"AccessionNumber": study["AccessionNumber"]},
    "date": lambda study: {"StudyDate": study["StudyDate"]},
    "date, modality": lambda study: {
        "StudyDate": study["StudyDate"],
        "ModalitiesInStudy": study["ModalitiesInStudy"],
    },
    "name prefix": lambda study: {"PatientName": study["PatientName"].split("^")[0][:_PREFIX_LETTERS] + "*"},
    "name, given name": lambda study: {"PatientName": "^".join(study["PatientName"].split("^")[:2]) + "*"},
}


NOT_BY_C_FIND: Final = "name prefix"
"""It has no limit: the beginning of a common family name has thousands of answers."""


# Asking


class WebAsker:
    """QIDO-RS over one kept-alive connection."""

    def __init__(self, target: Target) -> None:
        self._connection = connect(target.http_port)
        self._headers = {"Accept": "application/dicom+json", **target.headers}

    def ask(self, keys: Keys) -> tuple[float, int]:
        """Milliseconds, and how many studies came. Raises: RuntimeError when the answer is no list."""
        path = f"/dicom-web/studies?{urlencode({**keys, 'limit': LIMIT, 'includefield': '00081030,00080060'})}"
        begun = time.perf_counter()
        self._connection.request("GET", path, headers=self._headers)
        answer = self._connection.getresponse()
        body = answer.read()
        took = (time.perf_counter() - begun) * 1000
        if answer.status != 200:
            raise RuntimeError(f"{answer.status} {body[:300]!r}")
        return took, body.count(b'"0020000D"')


class DicomAsker:
    """C-FIND over one association; answers are taken off the wire and counted, not decoded."""

    def __init__(self, target: Target) -> None:
        self._channel: Channel = associate(
            target.dicom, calling=ASKER, contexts=[(STUDY_ROOT_FIND, [IMPLICIT])], timeout=120
        )
        self._read = self._channel.socket.makefile("rb", buffering=1 << 18).read
        self._known: dict[bytes, int] = {}

    def ask(self, keys: Keys) -> tuple[float, int]:
        """Milliseconds, and how many studies came. Raises: RuntimeError when the last status is no success."""
        query = Dataset()
        query.SpecificCharacterSet = "ISO_IR 192"
        query.QueryRetrieveLevel = "STUDY"
        for keyword in RETURNED:
            setattr(query, keyword, "")
        for keyword, value in keys.items():
            setattr(query, keyword, value)
        identifier = encode(query, True, True) or b""
        message_id = self._channel.next_message_id()
        found = 0
        begun = time.perf_counter()
        self._channel.send(
            1,
            {
                "CommandField": upper_layer.C_FIND_RQ,
                "MessageID": message_id,
                "AffectedSOPClassUID": STUDY_ROOT_FIND,
                "Priority": 0,
            },
            identifier,
        )
        while (status := self._status()) in (0xFF00, 0xFF01):
            found += 1
        took = (time.perf_counter() - begun) * 1000
        if status:
            raise RuntimeError(f"C-FIND ends with {status:04X}")
        return took, found

    def _status(self) -> int:
        """The status of the next response; its identifier, which follows in PDUs of its own, is left as it is."""
        while True:
            kind, length = _PDU_HEAD.unpack(self._read(_PDU_HEAD.size))
            if kind != upper_layer.P_DATA_TF:
                raise RuntimeError("the association is over")
            for piece in upper_layer.pdvs(self._read(length)):
                if piece.is_command:
                    return self._known_status(bytes(piece.data))

    def _known_status(self, command: bytes) -> int:
        # All pending responses of a query have the same command set.
        if command not in self._known:
            self._known = {command: int(upper_layer.decode_command(command)["Status"])}
        return self._known[command]


ASKERS: Final[dict[str, Callable[[Target], Any]]] = {"QIDO-RS": WebAsker, "C-FIND": DicomAsker}


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]


def measure(targets: list[Target], requests: int) -> bool:
    """Ask, print, and whether Regis kept to the goal."""
    kept = True
    for protocol, make in ASKERS.items():
        print(f"\n{protocol:<16}" + "".join(f"{f'{t.name}, {t.studies} studies':>46}" for t in targets))
        print(f"{'':<16}" + f"{'median':>16}{'p95':>12}{'answers':>18}" * len(targets))
        for kind, keys_of in KINDS.items():
            if protocol == "C-FIND" and kind == NOT_BY_C_FIND:
                continue
            line = f"{kind:<16}"
            times: dict[str, list[float]] = {target.name: [] for target in targets}
            found: dict[str, list[int]] = {target.name: [] for target in targets}
            for target in targets:
                asker = make(target)  # one for these requests: a server may close what rests while others are asked
                for number in range(requests + 5):
                    keys = keys_of(target.samples[number % len(target.samples)])
                    took, studies = asker.ask(keys)
                    if not studies and target is targets[0]:  # Orthanc's capitals are Latin: it misses other names
                        raise RuntimeError(f"{target.name} finds nothing for {keys}")
                    if number >= 5:  # the first ones fill caches
                        times[target.name].append(took)
                        found[target.name].append(studies)
            for target in targets:
                median, p95 = statistics.median(times[target.name]), _percentile(times[target.name], 0.95)
                line += f"{median:>13.1f} ms{p95:>9.1f} ms{statistics.mean(found[target.name]):>18.1f}"
                if target.name == "Regis node" and p95 > GOAL_MS:
                    kept = False
                    line += " !"
            print(line, flush=True)
    return kept


def main() -> None:
    """Parse, fill, measure."""
    parser = argparse.ArgumentParser(prog="regis bench query", description=__doc__)
    parser.add_argument("--count", type=int, default=1_000_000, help="studies in the index of Regis")
    parser.add_argument("--requests", type=int, default=200, help="requests of each kind")
    parser.add_argument("--database", choices=("sqlite", "postgresql"), default="sqlite", help="of Regis")
    parser.add_argument("--orthanc-seconds", type=int, default=600, help="how long Orthanc is loaded; 0: left out")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="which keys are drawn")
    parser.add_argument("--dir", type=Path, default=ROOT / "var" / "bench", help="where the indexes are kept")
    chosen = parser.parse_args()
    with_orthanc = bool(chosen.orthanc_seconds and program("Orthanc") and PLUGIN.exists())
    if chosen.orthanc_seconds and not with_orthanc:
        print("Orthanc or its DICOMweb plugin is not installed and is left out.")
    count, seed, samples = chosen.count, chosen.seed, min(chosen.requests + 5, chosen.count)
    print(f"{chosen.requests} requests of each kind, seed {seed}; goal for Regis: p95 ≤ {GOAL_MS:.0f} ms", flush=True)
    with regis(chosen.dir, count, chosen.database, samples, seed) as ours:
        if with_orthanc:
            with orthanc(chosen.dir, chosen.orthanc_seconds, samples, seed) as theirs:
                kept = measure([ours, theirs], chosen.requests)
        else:
            kept = measure([ours], chosen.requests)
    print(f"\nRegis {'kept to' if kept else 'missed'} the goal: p95 ≤ {GOAL_MS:.0f} ms.")
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
