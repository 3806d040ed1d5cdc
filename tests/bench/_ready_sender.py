"""A C-STORE sender that costs next to nothing: all it will send is ready as bytes before the first goes out.

Run in a process of its own: `python -m tests.bench._ready_sender PORT CALLED-AE FILE…`; the files are of one SOP class
and transfer syntax. It says "ready" when its association stands, waits for a line, and sends one instance after the
other, each after the answer to the one before. It ends with 1 at the first answer that is not Success (0000).
"""

import socket
import sys
import time
from pathlib import Path
from typing import Final

from standards import association, part10, upper_layer
from tests.bench._peers import SENDER

LARGEST_PDU: Final = 131_072
ANSWER_SECONDS: Final = 120


def encoded(number: int, file: Path, largest_pdu: int) -> tuple[association.Proposal, bytes]:
    """The context an instance needs, and its C-STORE-RQ with its data set, as they go over the wire."""
    whole = file.read_bytes()
    meta = part10.read_meta(whole)
    command = {
        "AffectedSOPClassUID": meta.MediaStorageSOPClassUID,
        "CommandField": upper_layer.C_STORE_RQ,
        "MessageID": number % 65_535 + 1,
        "Priority": 0,
        "CommandDataSetType": upper_layer.DATASET_FOLLOWS,
        "AffectedSOPInstanceUID": meta.MediaStorageSOPInstanceUID,
    }
    data_set = memoryview(whole)[part10.dataset_offset(whole) :]
    return association.Proposal(meta.MediaStorageSOPClassUID, (meta.TransferSyntaxUID,)), b"".join(
        [
            *upper_layer.fragments(1, upper_layer.encode_command(command), largest_pdu, is_command=True),
            *upper_layer.fragments(1, bytes(data_set), largest_pdu, is_command=False),
        ]
    )


def answer(peer: socket.socket, expected: int) -> bytearray:
    """What follows the header of the next PDU, which must be of that type."""
    read = upper_layer.read_pdu(peer, 1 << 20, time.monotonic() + ANSWER_SECONDS)
    if read is None or read[0] != expected:
        sys.exit(f"PDU {expected:02X} was expected, not {read and read[0]}")
    return read[1]


def main() -> None:
    """Associate, get everything ready, wait, send."""
    port, called, *names = sys.argv[1:]
    peer = socket.create_connection(("127.0.0.1", int(port)), 30)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    proposal, _ = encoded(0, Path(names[0]), LARGEST_PDU)
    peer.sendall(association.encode_request(called, SENDER, {1: proposal}))
    accepted = association.read_acceptance(answer(peer, upper_layer.ASSOCIATE_AC))
    largest = min(accepted.largest_pdu or LARGEST_PDU, LARGEST_PDU)
    messages = [encoded(number, Path(name), largest)[1] for number, name in enumerate(names)]
    print("ready", flush=True)
    sys.stdin.readline()
    for message in messages:
        peer.sendall(message)
        (piece,) = upper_layer.pdvs(answer(peer, upper_layer.P_DATA_TF))
        if status := upper_layer.decode_command(piece.data)["Status"]:
            sys.exit(f"status {status:04X}")
    peer.sendall(upper_layer.RELEASE_RQ_PDU)
    answer(peer, upper_layer.RELEASE_RP)


if __name__ == "__main__":
    main()
