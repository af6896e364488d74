"""
A ModelArts that answers at once, or after a fixed delay, from a process of its own: it must not be what is measured.

`python modelarts.py DELAY_MS` prints its port. Every cluster is there until it is deleted; nothing is checked.
"""

import asyncio
import sys
from typing import ClassVar

BODY_404 = b'{"error_code":"ModelArts.6404","error_msg":"not found"}'


class ModelArts(asyncio.Protocol):
    """One connection, kept alive."""

    gone: ClassVar[set[bytes]] = set()
    requests: ClassVar[int] = 0
    delay: ClassVar[float] = 0.0

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, rest = self._buffer.partition(b"\r\n\r\n")
            named = [line.lower().split(b":") for line in head.split(b"\r\n") if b":" in line]
            length = next((int(value[0]) for name, *value in named if name == b"content-length"), 0)
            if len(rest) < length:
                return
            self._buffer = rest[length:]
            answer = self._answer(head)
            asyncio.get_running_loop().call_later(ModelArts.delay, self._send, answer)

    def _send(self, answer: bytes) -> None:
        assert isinstance(self._transport, asyncio.WriteTransport)
        self._transport.write(answer)

    def _answer(self, head: bytes) -> bytes:
        method, target, _ = head.split(b"\r\n", 1)[0].split(b" ")
        cluster = target.partition(b"?")[0].rpartition(b"/")[2]
        if cluster == b"requests":  # of the benchmark's own, and not counted
            return _http(200, b"%d" % ModelArts.requests)
        ModelArts.requests += 1
        if cluster == b"all":
            return _http(200, b'{"current":1,"data":[],"pages":1,"size":0,"total":0}')
        if method == b"DELETE":
            self.gone.add(cluster)
            return b"HTTP/1.1 204 No Content\r\nX-Request-Id: r\r\n\r\n"
        if cluster in self.gone:
            return _http(400, BODY_404)
        return _http(200, b'{"id":"%s","name":"ci-a","network_info":[]}' % cluster)


def _http(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d X\r\nX-Request-Id: r\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def _serve(delay_ms: float) -> None:
    ModelArts.delay = delay_ms / 1000
    server = await asyncio.get_running_loop().create_server(ModelArts, "127.0.0.1", 0)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(float(sys.argv[1])))
