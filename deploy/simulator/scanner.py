"""A modality as the network sees it: an SCU that asks the worklist and sends what it made."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pynetdicom import AE
from pynetdicom.sop_class import ModalityWorklistInformationFind, Verification

from standards.errors import PermanentError, TransientError

PATIENT_KEYS = [
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyInstanceUID",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "ReferringPhysicianName",
]
STEP_KEYS = [
    "ScheduledProcedureStepStartDate",
    "ScheduledProcedureStepStartTime",
    "Modality",
    "ScheduledProcedureStepID",
    "ScheduledProcedureStepDescription",
    "ScheduledPerformingPhysicianName",
    "ScheduledStationName",
]


@dataclass
class Sent:
    """What became of a transmission: UIDs that were stored, and per refused one the reason."""

    stored: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Scanner:
    """One device: its AE title and character set, and the node it belongs to."""

    ae_title: str
    character_set: str
    node_ae_title: str
    host: str
    port: int

    def _associate(self, contexts: Iterable[tuple[str, str | None]]) -> "Association":
        ae = AE(ae_title=self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
        for abstract, transfer in dict.fromkeys(contexts):
            ae.add_requested_context(abstract, transfer) if transfer else ae.add_requested_context(abstract)
        return Association(ae, self)

    def echo(self) -> None:
        """C-ECHO. Raises TransientError when the node does not answer or refuses."""
        with self._associate([(Verification, None)]) as association:
            association.accepted.send_c_echo()

    def worklist(self, **keys: str) -> list[Dataset]:
        """Modality Worklist C-FIND for this station in the device's own character set; ``keys`` narrow it.

        Source: PS3.4 K.6.1.2.
        """
        query = Dataset()
        query.SpecificCharacterSet = self.character_set
        for keyword in PATIENT_KEYS:
            setattr(query, keyword, keys.get(keyword, ""))
        step = Dataset()
        step.ScheduledStationAETitle = self.ae_title
        for keyword in STEP_KEYS:
            setattr(step, keyword, keys.get(keyword, ""))
        query.ScheduledProcedureStepSequence = [step]
        found: list[Dataset] = []
        with self._associate([(ModalityWorklistInformationFind, None)]) as association:
            for status, answer in association.accepted.send_c_find(query, ModalityWorklistInformationFind):
                if answer is not None:
                    found.append(answer)
                elif not status or status.Status not in (0x0000, 0xFF00, 0xFF01):
                    code = f"{status.Status:04X}" if status else "no answer"
                    raise TransientError("worklist-failed", f"{self.node_ae_title} answered {code}")
        return found

    def send(self, instances: Iterable[Dataset]) -> Sent:
        """C-STORE of all ``instances`` over one association, whatever becomes of each."""
        ready = list(instances)
        sent = Sent()
        contexts = [(str(i.SOPClassUID), str(i.file_meta.TransferSyntaxUID)) for i in ready]
        with self._associate(contexts) as association:
            for instance in ready:
                uid = str(instance.SOPInstanceUID)
                try:
                    status = association.accepted.send_c_store(instance)
                except ValueError as error:
                    sent.refused[uid] = str(error)
                    continue
                if status and status.Status == 0x0000:
                    sent.stored.append(uid)
                else:
                    comment = status.get("ErrorComment", "") if status else "the association was lost"
                    sent.refused[uid] = f"{status.Status:04X} {comment}".strip() if status else comment
        return sent


class Association:
    """An accepted association as a context manager; released at the end, aborted on an error."""

    def __init__(self, ae: AE, scanner: Scanner) -> None:
        self._ae, self._scanner = ae, scanner

    def __enter__(self) -> "Association":
        scanner = self._scanner
        self.accepted = self._ae.associate(scanner.host, scanner.port, ae_title=scanner.node_ae_title)
        if not self.accepted.is_established:
            why = "refused the association" if self.accepted.is_rejected else "does not answer"
            raise TransientError("no-association", f"{scanner.node_ae_title} at port {scanner.port} {why}")
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.accepted.is_established:
            self.accepted.abort() if kind else self.accepted.release()


def read_folder(folder: Path) -> tuple[list[Dataset], dict[str, str]]:
    """The DICOM files under ``folder``, and per file that cannot be sent the reason."""
    usable: list[Dataset] = []
    unusable: dict[str, str] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        try:
            instance = dcmread(path)
            for keyword in ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"):
                if not instance.get(keyword):
                    raise PermanentError("missing-uid", f"no {keyword}")
            if "TransferSyntaxUID" not in instance.file_meta:
                raise PermanentError("unknown-transfer-syntax", "the file meta information names none")
        except InvalidDicomError:
            unusable[str(path)] = "not a DICOM file"
        except (PermanentError, OSError, ValueError, NotImplementedError, AttributeError, KeyError) as error:
            unusable[str(path)] = str(error)
        else:
            usable.append(instance)
    return usable, unusable
