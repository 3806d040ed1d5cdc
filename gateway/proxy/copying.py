"""What the rules say of an instance that the old PACS has taken: who gets a copy of it, and how changed."""

import mmap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gateway.proxy import rewriting
from gateway.proxy.conditions import Sender
from gateway.proxy.journal import Journal
from gateway.proxy.rules import Changes, Rules
from gateway.proxy.spool import Spool, head_of
from standards import part10
from standards.errors import RegisError
from standards.part10 import Provenance, write_file_meta


@dataclass(frozen=True)
class Copying:
    """Distributes files of the spool. ``rules`` gives those that hold now, ``secret`` keys the pseudonyms."""

    spool: Spool
    journal: Journal
    rules: Callable[[], Rules]
    secret: bytes

    def distribute(self, path: Path) -> None:
        """Hand the file to every destination that a rule names. Raises: OSError, then it is to be tried again."""
        head = head_of(path)
        try:
            meta = part10.read_meta(head)
            with path.open("rb") as file:
                header = part10.read_header(file, required=("SOPInstanceUID",))
        except RegisError as error:
            self.journal.missing(f"unreadable: {error}", sop_instance_uid=_uid_of(head))
            return
        sender = Sender(
            part10.text(meta, "SendingApplicationEntityTitle"),
            part10.text(meta, "ReceivingApplicationEntityTitle"),
            self.spool.address_of(path),
        )
        rules = self.rules()
        if rules.watches_charsets:
            self._watch(path, header, sender)
        verdict = rules.verdict(sender, header.sop_class_uid, header.dataset)
        if verdict.copies:
            self.journal.count("tapped")
        for copy in verdict.copies:
            if copy.changes.any:
                handed = self._changed(path, header, sender, copy.destination, copy.changes)
            else:
                self.spool.hand(path, copy.destination)
                handed = True
            if handed:
                self.journal.count(f"copied:{copy.destination}")

    def _watch(self, path: Path, header: part10.Header, sender: Sender) -> None:
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                found = rewriting.detected(memoryview(mapped)[header.dataset_offset :], header.transfer_syntax)
        except (RegisError, BufferError) as error:
            self.journal.event("charset-not-judged", error=str(error))
            return
        if found is not None:
            self.journal.detected(
                sender.calling_ae, found.declared, found.name, sure=found.is_sure, preview=found.preview
            )

    def _changed(self, path: Path, header: part10.Header, sender: Sender, destination: str, changes: Changes) -> bool:
        """A changed copy fails closed: what cannot be changed as told is not sent, which is False."""
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))[header.dataset_offset :]
        try:
            new = rewriting.rewritten(data, header.transfer_syntax, (changes,), self.secret)
        except RegisError as error:
            self.journal.event(
                "copy-withheld",
                destination=destination,
                rule=changes.rule,
                error=str(error),
                sop_instance_uid=header.sop_instance_uid,
            )
            return False
        provenance = Provenance() if changes.deidentify else Provenance(sender.calling_ae, sender.called_ae)
        meta = write_file_meta(header.sop_class_uid, new.sop_instance_uid, header.transfer_syntax, provenance)
        self.spool.hand_changed(path.name, destination, (meta, *new.pieces))
        return True


def _uid_of(head: bytes) -> str:
    try:
        return part10.text(part10.read_meta(head), "MediaStorageSOPInstanceUID")
    except RegisError:
        return ""
