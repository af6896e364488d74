"""An HTTP sink that remembers what it stored, and can be told to fail."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Received:
    """What an HTTP sink has stored, and how it answers."""

    ids: list[str] = field(default_factory=list)
    bodies: set[bytes] = field(default_factory=set)
    answers: list[int | Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    keep_first: bool = False  # store the event before a callable answers


@contextmanager
def http_sink() -> Iterator[tuple[str, Received]]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answer = received.answers.pop(0) if received.answers else 204
            if callable(answer):
                if received.keep_first:
                    received.ids.append(self.headers["ce-id"])
                    received.bodies.add(body)
                answer(self)
                return
            if 200 <= answer < 300:
                received.ids.append(self.headers["ce-id"])
                received.bodies.add(body)
            self.send_response(answer)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", received
    finally:
        server.shutdown()
        server.server_close()
