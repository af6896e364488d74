"""Serves HTTP on loopback, and sends each answer in whatever manner it is told to: whole, dripping, cut or reset."""

import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from io import BytesIO
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Response

from modelarts_cleanup.local.faults import Answer, Drip, Drop, Fault, Reset

if TYPE_CHECKING:
    # They exist for type checkers only.
    from _typeshed.wsgi import WSGIEnvironment

    Exchange: TypeAlias = Callable[[WSGIEnvironment], tuple[Answer | None, Fault | None]]

# Closing a socket that lingers for no time makes the kernel send RST instead of FIN.
_NO_LINGER = struct.pack("ii", 1, 0)
_BODILESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})
_LINE_END = "\r\n"


class Wire:
    """An HTTP server on threads of its own; `exchange` says what to answer and with which fault."""

    def __init__(self, exchange: "Exchange", *, host: str, port: int) -> None:
        """Listen at once; `OSError` if the address is not to be had."""
        self.exchange = exchange
        self._connections: set[socket.socket] = set()

        class Handler(_Handler):
            wire = self

        # Werkzeug ends the process when it cannot bind, so that it is given a socket that is bound. It demands
        # an app too, which the handler never asks.
        with socket.create_server((host, port), backlog=128) as listening:
            self._server = make_server(
                host,
                listening.getsockname()[1],
                Response(),
                threaded=True,
                request_handler=Handler,
                fd=listening.fileno(),
            )
        self.url = f"http://{host}:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._server.shutdown()
        self._thread.join()
        for connection in tuple(self._connections):
            with suppress(OSError):  # the other side may have been quicker
                connection.shutdown(socket.SHUT_RDWR)

    def opened(self, connection: socket.socket) -> None:
        """Remember a connection, to cut it at the end."""
        self._connections.add(connection)

    def closed(self, connection: socket.socket) -> None:
        """Forget a connection."""
        self._connections.discard(connection)


class _Handler(WSGIRequestHandler):
    """
    Takes the requests of one connection.

    Werkzeug's own way of sending an answer closes each connection and can neither drip nor reset.
    """

    wire: ClassVar[Wire]
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.wire.opened(self.connection)

    def finish(self) -> None:
        self.wire.closed(self.connection)
        super().finish()

    def log(self, type: str, message: str, *args: object) -> None:  # noqa: A002 - the name is Werkzeug's
        """Stay silent: a request line is nobody's log line."""

    def run_wsgi(self) -> None:
        environ = self.make_environ()
        stream = environ["wsgi.input"]
        chunked = environ.get("wsgi.input_terminated", False)
        body = stream.read() if chunked else stream.read(int(environ.get("CONTENT_LENGTH") or 0))
        environ["wsgi.input"] = BytesIO(body)
        answer, fault = self.wire.exchange(environ)
        head, content = self._bytes(answer) if answer else (b"", b"")
        match fault:
            case Drip(seconds=seconds, headers=headers):
                start = 0 if headers else len(head)
                whole = head + content
                self.wfile.write(whole[:start])
                for byte in whole[start:]:
                    time.sleep(seconds)
                    self.wfile.write(bytes((byte,)))
            case Drop(sent=sent):
                self.wfile.write((head + content)[:sent])
                self.close_connection = True
            case Reset(sent=sent):
                self.wfile.write((head + content)[:sent])
                self._reset()
            case _:
                self.wfile.write(head + content)

    def _bytes(self, answer: Answer) -> tuple[bytes, bytes]:
        bodiless = self.command == "HEAD" or answer.status in _BODILESS
        headers = dict(answer.headers)
        if any(name.lower() == "content-length" for name in headers):
            self.close_connection = True
        elif answer.status not in _BODILESS:
            headers["Content-Length"] = str(len(answer.body))
        if self.close_connection:
            headers["Connection"] = "close"
        known = answer.status in HTTPStatus.__members__.values()
        phrase = HTTPStatus(answer.status).phrase if known else ""
        lines = [f"HTTP/1.1 {answer.status} {phrase}", *(f"{name}: {value}" for name, value in headers.items())]
        head = _LINE_END.join([*lines, "", ""]).encode("latin-1")
        return head, b"" if bodiless else answer.body

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.wire.closed(self.connection)
        # Past the files that http.server keeps on it, and before it can send its polite FIN.
        os.close(self.connection.detach())
