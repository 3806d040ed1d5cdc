"""JPEG lossless, 12-bit and progressive frames, decoded by GDCM in a process that may die of them."""

import atexit
import json
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from standards import transfer_syntaxes
from standards.errors import PermanentError
from standards.frames import FrameLayout

TIMEOUT_SECONDS: Final = 60.0
_WORKER: Final = Path(__file__).with_name("gdcm_worker.py")
_PROGRESSIVE: Final = ("1.2.840.10008.1.2.4.53", "1.2.840.10008.1.2.4.55")
_LOSSLESS: Final = (transfer_syntaxes.JPEG_LOSSLESS, transfer_syntaxes.JPEG_LOSSLESS_SV1)


def is_ours(transfer_syntax: str, shape: FrameLayout) -> bool:
    """Whether a frame of this kind is decoded here and not by pydicom's in-process decoders."""
    if transfer_syntax in _LOSSLESS:
        return True
    if transfer_syntax == transfer_syntaxes.JPEG_EXTENDED:
        return shape.bits_stored > 8
    return transfer_syntax in _PROGRESSIVE


def has_codec(transfer_syntax: str) -> bool:
    """Whether frames in this transfer syntax are ever decoded here."""
    return transfer_syntax in (*_LOSSLESS, *_PROGRESSIVE, transfer_syntaxes.JPEG_EXTENDED)


class _Decoder:
    """One worker process, started when first needed and again after it died; one frame at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def decode(self, about: bytes, stored: bytes) -> bytes:
        """The worker's answer; b"" if it has none, dies, or takes longer than a minute."""
        with self._lock:
            while True:
                is_new = self._process is None
                try:
                    return self._ask(self._running(), about, stored)
                except (BrokenPipeError, EOFError):
                    # Either the frame killed the codec, which is why it runs apart, or an idle one had died before.
                    self._stop()
                    if is_new:
                        return b""

    def _ask(self, process: subprocess.Popen[bytes], about: bytes, stored: bytes) -> bytes:
        assert process.stdin is not None
        assert process.stdout is not None
        alarm = threading.Timer(TIMEOUT_SECONDS, process.kill)
        alarm.start()
        try:
            process.stdin.write(struct.pack(">LL", len(about), len(stored)) + about)
            process.stdin.write(stored)
            process.stdin.flush()
            return _answer(process.stdout)
        finally:
            alarm.cancel()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(  # noqa: S603
                [sys.executable, str(_WORKER)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # libjpeg's complaints; what matters is whether there is a frame.
                stderr=subprocess.DEVNULL,
            )
        return self._process

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    # Bytes for a dead process; they have nowhere to go.
                    continue

    def forget(self) -> None:
        """In a forked process: the worker is the parent's, its pipes must not be shared."""
        self._lock = threading.Lock()
        self._process = None

    def close(self) -> None:
        """End the worker process."""
        with self._lock:
            self._stop()


def _answer(stream: IO[bytes]) -> bytes:
    head = stream.read(4)
    if len(head) < 4:
        raise EOFError
    (length,) = struct.unpack(">L", head)
    decoded = stream.read(length)
    if len(decoded) < length:
        raise EOFError
    return decoded


_decoder = _Decoder()
atexit.register(_decoder.close)
os.register_at_fork(after_in_child=_decoder.forget)


def decode(stored: bytes, shape: FrameLayout, transfer_syntax: str) -> NDArray[Any]:
    """A frame as rows × columns (× samples), little-endian, in the colour space of the codestream.

    Raises: PermanentError("cannot-decode").
    """
    if shape.bits_allocated not in (8, 16):
        raise PermanentError("cannot-decode", f"JPEG of {shape.bits_allocated} bits")
    about = {
        "rows": shape.rows,
        "columns": shape.columns,
        "samples": shape.samples,
        "bits_allocated": shape.bits_allocated,
        "bits_stored": shape.bits_stored,
        "is_signed": shape.is_signed,
        "photometric_interpretation": shape.photometric_interpretation,
        "transfer_syntax": transfer_syntax,
    }
    raw = _decoder.decode(json.dumps(about).encode("ascii"), stored)
    wanted = shape.rows * shape.columns * shape.samples * shape.bits_allocated // 8
    if len(raw) != wanted:
        raise PermanentError("cannot-decode", f"the codec gave {len(raw)} bytes of {wanted}")
    dtype = f"<{'i' if shape.is_signed else 'u'}{shape.bits_allocated // 8}"
    dimensions = (shape.rows, shape.columns) + ((shape.samples,) if shape.samples > 1 else ())
    return np.frombuffer(raw, dtype).reshape(dimensions)
