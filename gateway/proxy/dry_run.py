"""What the rules would do to stored instances, without doing it."""

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Final

from pydicom.datadict import keyword_for_tag

from gateway.proxy import rewriting
from gateway.proxy.conditions import Sender
from gateway.proxy.rewriting import Difference
from gateway.proxy.rules import Changes, Rules
from standards import part10
from standards.charset_detection import Detection
from standards.errors import RegisError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What would become of what goes to one destination. ``refusal``: why it would not be changed, or not be sent."""

    destination: str
    action: str
    differences: tuple[Difference, ...] = ()
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What would become of one instance. ``charset``: what its texts are really written in, where they lie."""

    study_instance_uid: str
    sop_instance_uid: str
    rules: tuple[str, ...]
    outcomes: tuple[Outcome, ...]
    charset: Detection | None

    @property
    def kind(self) -> tuple[object, ...]:
        """The same for instances to which the same would happen, whatever their values are."""
        changed = tuple(
            (one.destination, one.action, one.refusal, tuple(difference.tag for difference in one.differences))
            for one in self.outcomes
        )
        return self.rules, changed, self.charset.codec if self.charset else ""


NOBODY: Final = Sender("", "", "")


def examine(file: BinaryIO, rules: Rules, secret: bytes, sender: Sender = NOBODY) -> Report:
    """Ask the rules about a Part 10 file; what ``sender`` says goes before what its meta group says of who sent it.

    Raises: PermanentError for what is no DICOM.
    """
    header = part10.read_header(file, required=())
    said = part10.Provenance.of(header.file_meta)
    sender = Sender(
        sender.calling_ae or said.sending_ae_title, sender.called_ae or said.receiving_ae_title, sender.address
    )
    data = _all_of(file)[header.dataset_offset :]
    verdict = rules.verdict(sender, header.sop_class_uid, header.dataset)
    outcomes = [_passing(verdict.drop, verdict.route, data, header.transfer_syntax, verdict.changes, secret)]
    for copy in verdict.copies:
        outcomes.append(_copied(copy.destination, data, header.transfer_syntax, copy.changes, secret))
    return Report(
        header.study_instance_uid,
        header.sop_instance_uid,
        verdict.rules,
        tuple(outcomes),
        rewriting.detected(data, header.transfer_syntax),
    )


def _all_of(file: BinaryIO) -> memoryview:
    try:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError):  # a stream of another store than files
        file.seek(0)
        return memoryview(file.read())


def _passing(
    drop: int | None, route: str, data: memoryview, syntax: str, changes: tuple[Changes, ...], secret: bytes
) -> Outcome:
    if drop is not None:
        return Outcome("old PACS", f"dropped, answered {drop:04X}")
    destination = route or "old PACS"
    try:
        differences = rewriting.rewritten(data, syntax, changes, secret).differences if changes else ()
    except RegisError as error:
        return Outcome("old PACS", "passes as it is", refusal=str(error))
    return Outcome(destination, "changed" if differences else "passes as it is", differences)


def _copied(destination: str, data: memoryview, syntax: str, changes: Changes, secret: bytes) -> Outcome:
    if not changes.any:
        return Outcome(destination, "copied as it is")
    try:
        return Outcome(
            destination, "copied, changed", rewriting.rewritten(data, syntax, (changes,), secret).differences
        )
    except RegisError as error:
        return Outcome(destination, "withheld", refusal=str(error))


def told(reports: Iterable[Report]) -> Iterable[str]:
    """Lines for a person: by study, instances of the same kind together with the changes of the first of them."""
    studies: dict[str, dict[tuple[object, ...], list[Report]]] = {}
    for report in reports:
        studies.setdefault(report.study_instance_uid, {}).setdefault(report.kind, []).append(report)
    for study, kinds in studies.items():
        yield f"Study {study or 'without a UID'}"
        for same in kinds.values():
            first = same[0]
            fitting = ", ".join(f"«{name}»" for name in first.rules) or "none"
            yield f"  {len(same)} instances, as {first.sop_instance_uid}: rules that fit: {fitting}"
            if first.charset is not None:
                yield _charset_line(first.charset)
            for outcome in first.outcomes:
                yield f"    {outcome.destination}: {outcome.action}" + (
                    f" ({outcome.refusal})" if outcome.refusal else ""
                )
                yield from (f"      {_shown(difference)}" for difference in outcome.differences)


def _charset_line(found: Detection) -> str:
    return (
        f"    its texts declare {found.declared or 'no character set'} and are {found.name}"
        f" ({found.confidence:.0%} sure): {found.preview}"
    )


def _shown(difference: Difference) -> str:
    name = keyword_for_tag(difference.tag) or "private"
    before, after = (
        "is not there" if value is None else f"{value[:60]!r}" for value in (difference.before, difference.after)
    )
    return f"({difference.tag >> 16:04X},{difference.tag & 0xFFFF:04X}) {name}: {before} → {after}"
