"""Sockets and database connections of associations: nothing a peer does may hold either for ever."""

import time

from django.db import connection
from pynetdicom.transport import AssociationSocket

LARGEST_PDU_BYTES = 4 << 20
"""More than any sane peer sends whatever was negotiated; a PDU can announce 4 GiB."""


def healthy_connection() -> None:
    """Drop this thread's database connection when it broke or is too old; Django opens the next by itself."""
    connection.close_if_unusable_or_obsolete()


class PeerSocket(AssociationSocket):
    """Reads whole PDUs in large pieces, each of bounded size and within a deadline, against peers that dribble."""

    def recv(self, nr_bytes: int) -> bytearray:
        """``nr_bytes`` bytes, or fewer when the peer closed. Raises OSError, which ends the association."""
        if nr_bytes > LARGEST_PDU_BYTES:
            raise OSError(f"a PDU of {nr_bytes} bytes is announced")
        if self.socket is None:
            raise OSError("the connection is closed")
        buffer = bytearray(nr_bytes)
        view = memoryview(buffer)
        limit = self.assoc.network_timeout
        deadline = time.monotonic() + limit if limit else None
        received = 0
        while received < nr_bytes:
            if deadline is not None:
                self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            count = self.socket.recv_into(view[received:])
            if not count:
                view.release()
                del buffer[received:]
                return buffer
            received += count
        self.socket.settimeout(limit)
        return buffer
