"""ORU^R01 of a signed report: built when it is signed, kept on the outbox until the receiver has it.

Source: HL7 v2.5.1 7.3.1 (ORU), tables 0123 (OBR-25) and 0085 (OBX-11)
"""

import uuid

from django.utils import timezone

from ris_central.integration.models import Hl7Outgoing, Hl7Receiver
from ris_central.reporting.models import Report
from standards.hl7v2 import encode, escape

CODECS = {"UNICODE UTF-8": "utf_8", "8859/5": "iso8859_5", "WINDOWS-1251": "cp1251"}


def enqueue(report: Report) -> None:
    """Put the report on the outbox of every active receiver, in the caller's transaction; once per state of it."""
    addenda = report.addenda.count()
    for receiver in Hl7Receiver.objects.filter(is_active=True):
        control_id = uuid.uuid4().hex[:20]
        Hl7Outgoing.objects.get_or_create(
            receiver=receiver,
            key=f"report:{report.pk}:{addenda}",
            defaults={"message_control_id": control_id, "payload": oru(report, receiver, control_id)},
        )


def oru(report: Report, receiver: Hl7Receiver, control_id: str) -> bytes:
    """The message in the receiver's character set, without framing. OBR-25 is F, or C once there are addenda."""
    study = report.study
    patient, order = study.patient, study.service_request
    now = timezone.now().strftime("%Y%m%d%H%M%S+0000")
    addenda = list(report.addenda.select_related("author").order_by("pk"))
    status = "C" if addenda else "F"
    family, given, middle, prefix, suffix = ([*patient.name.split("=")[0].split("^"), "", "", "", "", ""])[:5]
    name = "^".join(escape(part) for part in (family, given, middle, suffix, prefix)).rstrip("^")
    born = patient.birth_date.strftime("%Y%m%d") if patient.birth_date else ""
    signer = report.signed_by or report.author
    interpreter = f"{signer.pk}&{escape(signer.last_name)}&{escape(signer.first_name)}"
    accession = escape(study.accession_number)
    placer = escape(order.placer_order_number) if order else ""
    description = escape(study.study_description or (order.description if order else ""))
    signed = report.signed_at.strftime("%Y%m%d%H%M%S+0000") if report.signed_at else now
    modality = escape(study.modalities[0]) if study.modalities else ""
    texts = [("59776-5^Findings^LN", report.findings), ("19005-8^Impression^LN", report.conclusion)]
    texts += [("55107-7^Addendum^LN", addendum.text) for addendum in addenda]
    segments = [
        f"MSH|^~\\&|REGIS|{escape(study.site.code)}|{escape(receiver.application)}|{escape(receiver.facility)}|{now}||"
        f"ORU^R01^ORU_R01|{control_id}|P|2.5.1||||||{receiver.character_set}",
        f"PID|1||{escape(study.dicom_patient_id)}^^^{escape(study.issuer_of_patient_id)}^MR||{name}||{born}|{patient.sex}",
        f"ORC|RE|{placer}|{accession}",
        "|".join(
            ["OBR", "1", placer, accession, f"{accession}^{description}", *[""] * 17, signed, "", modality, status]
            + [""] * 6
            + [interpreter]
        ),
    ]
    for number, (code, text) in enumerate(texts, start=1):
        segments.append(f"OBX|{number}|TX|{code}||{escape(text)}||||||{status}|||{signed}")
    uid = f"113014^DICOM Study^DCM||{study.study_instance_uid}"
    segments.append(f"OBX|{len(texts) + 1}|ST|{uid}||||||{status}|||{signed}")
    segments.append(f"ZDS|{study.study_instance_uid}^REGIS^Application^DICOM")
    return encode("\r".join(segments) + "\r", CODECS.get(receiver.character_set, "utf_8"))
