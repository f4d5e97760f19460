"""Lines over a socket, between two sides that do not trust each other: a cap on their length, no other assumption.

One message is one line. A line beyond the cap is a :class:`ChannelError`; a line without its end is none; what a line
means is checked by whoever reads it.
"""

from __future__ import annotations

import socket

from pydantic import BaseModel

from bench.runner.protocol import MAX_LINE_BYTES

CHUNK_BYTES = 65536


class ChannelError(Exception):
    """The other side broke the rules; the message says what it did, without a subject."""


class Channel:
    """One end of a socket that carries lines.

    Args:
        sock: a connected stream socket; the channel owns it.
        max_line_bytes: the longest line that is accepted.
    """

    def __init__(self, sock: socket.socket, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._socket = sock
        self._max_line_bytes = max_line_bytes
        self._buffer = bytearray()
        self._searched = 0
        self.closed_by_peer = False

    @property
    def socket(self) -> socket.socket:
        """The socket itself, to pass descriptors over it."""
        return self._socket

    def fileno(self) -> int:
        """For ``poll``."""
        return self._socket.fileno()

    def send(self, message: BaseModel) -> None:
        """Send one message; a peer that is gone raises ``OSError``."""
        self._socket.sendall(message.model_dump_json().encode() + b"\n")

    def fill(self) -> None:
        """Read what has arrived, once: call it when ``poll`` says that there is something, or to wait for it."""
        try:
            chunk = self._socket.recv(CHUNK_BYTES)
        except ConnectionResetError:
            chunk = b""
        self.closed_by_peer = not chunk
        self._buffer += chunk

    def line(self) -> bytes | None:
        """The next whole line without its newline, or None where none has arrived yet.

        Raises:
            ChannelError: where the line is too long.
        """
        end = self._buffer.find(b"\n", self._searched)
        if max(end, len(self._buffer) if end < 0 else 0) > self._max_line_bytes:
            raise ChannelError(f"sent a line of more than {self._max_line_bytes} bytes")
        if end < 0:
            self._searched = len(self._buffer)
            return None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        self._searched = 0
        return line

    def wait_for_line(self) -> bytes | None:
        """Block until there is a line; None where the peer closed without one. Raises as :meth:`line`."""
        while (line := self.line()) is None and not self.closed_by_peer:
            self.fill()
        return line

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
