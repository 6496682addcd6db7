"""A proxy before a real server that loses, delays and garbles, request by request, as it is told.

| mode | what becomes of a request |
|-|-|
| ``ok`` | forwarded and answered |
| ``refused`` | the connection is reset unread; as the mode of all requests nobody listens |
| ``hanging`` | taken and never answered |
| ``late`` | as hanging, and forwarded once the client has given up |
| ``500``, ``503`` | answered so, and not forwarded |
| ``lost`` | forwarded, the connection reset in the place of an answer |
| ``cut`` | forwarded, the connection reset in the middle of the answer's body |
| ``slow`` | forwarded, the answer late and in pieces |
"""

import contextlib
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

MODES = ("refused", "hanging", "late", "500", "503", "lost", "cut", "slow")
# Where a client may wait long, tests pass over these.
QUICK = tuple(mode for mode in MODES if mode not in ("hanging", "late"))
Rule = Callable[[str, str], str]


class FaultProxy:
    """Threads of this process on a port of its own; to be used as a context.

    Attributes:
        url: to be given to clients.
        requests: (method, path) of every request that was read.
        rule: the mode by a request's method and path; may be changed at any moment, as ``mode`` does for all.
        delay: seconds before each of the two pieces of a slow answer.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._listener: socket.socket | None = None
        self._port = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.requests: list[tuple[str, str]] = []
        self.rule: Rule = lambda method, path: "ok"
        self.delay = 0.05
        self._listen()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> "FaultProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._deafen()

    def mode(self, name: str) -> None:
        """One mode for all requests from now on."""
        self.rule = lambda method, path: name
        if name == "refused":
            self._deafen()
        else:
            self._listen()

    def randomly(self, seed: int, share: float, modes: Sequence[str] = QUICK) -> None:
        """From now on a share of the requests gets some mode, by chance."""
        self._listen()
        chance = random.Random(seed)
        self.rule = lambda method, path: chance.choice(modes) if chance.random() < share else "ok"

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.create_server(("127.0.0.1", self._port), backlog=50)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _deafen(self) -> None:
        """Nobody listens, and whoever was connected is not any more."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            for client in self._open:
                _reset(client)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with self._lock:
            self._open.add(client)
        try:
            with contextlib.suppress(OSError, ValueError, HTTPException):
                while self._one(client):
                    pass
        finally:
            with self._lock:
                self._open.discard(client)
                client.close()

    def _one(self, client: socket.socket) -> bool:
        """Serve one request; whether the connection goes on."""
        head = _head(client)
        if not head:
            return False
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        headers = dict(line.split(": ", 1) for line in lines[1:])
        path = target.partition("?")[0]
        mode = self.rule(method, path)
        self.requests.append((method, path))
        if mode == "refused":
            return _reset(client)
        body = _exactly(
            client, int(next((v for k, v in headers.items() if k.lower() == "content-length"), "0"))
        )
        if mode in ("500", "503"):
            client.sendall(
                f"HTTP/1.1 {mode} Fault\r\nContent-Length: 7\r\n\r\n".encode() + b"a fault"
            )
            return True
        if mode in ("hanging", "late"):
            self._wait_out(client)
            if mode == "late":
                self._forward(method, target, headers, body)
            return _reset(client)
        status, answered, data = self._forward(method, target, headers, body)
        return self._answer(client, mode, status, answered, data)

    def _answer(
        self,
        client: socket.socket,
        mode: str,
        status: int,
        headers: list[tuple[str, str]],
        data: bytes,
    ) -> bool:
        if mode == "lost":
            return _reset(client)
        dropped = ("transfer-encoding", "connection", "content-length")
        kept = "".join(
            f"{key}: {value}\r\n" for key, value in headers if key.lower() not in dropped
        )
        head = f"HTTP/1.1 {status} Answer\r\n{kept}Content-Length: {len(data)}\r\n\r\n".encode(
            "latin-1"
        )
        if mode == "cut":
            client.sendall(head + data[: len(data) // 2])
            return _reset(client)
        for piece in (head + data[:1], data[1:]) if mode == "slow" else (head + data,):
            if mode == "slow":
                time.sleep(self.delay)
            client.sendall(piece)
        return True

    def _forward(
        self, method: str, target: str, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        own = {
            key: value
            for key, value in headers.items()
            if key.lower() not in ("host", "connection", "accept-encoding")
        }
        with contextlib.closing(HTTPConnection(self._upstream, timeout=60)) as upstream:
            upstream.request(method, target, body, own)
            answer = upstream.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _wait_out(self, client: socket.socket) -> None:
        """Until the client gives up, or the proxy ends."""
        client.settimeout(0.05)
        while not self._over.is_set():
            try:
                if not client.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                continue


@contextlib.contextmanager
def each_kind(
    proxy: FaultProxy, mode: str, kind: Callable[[str, str], str], failing: Sequence[int]
) -> Iterator[dict[str, int]]:
    """Of every kind of request the ``failing`` ones, counted from 1, get a mode; gives the counts by kind."""
    seen: dict[str, int] = {}
    lock = threading.Lock()

    def rule(method: str, path: str) -> str:
        with lock:
            name = kind(method, path)
            seen[name] = seen.get(name, 0) + 1
            return mode if seen[name] in failing else "ok"

    proxy.rule = rule
    try:
        yield seen
    finally:
        proxy.mode("ok")


def _head(client: socket.socket) -> bytes:
    """A request's head without its last blank line; empty where the client has gone."""
    data = b""
    while not data.endswith(b"\r\n\r\n"):
        byte = client.recv(1)
        if not byte:
            return b""
        data += byte
    return data[:-4]


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (piece := client.recv(count - len(data))):
        data += piece
    return data


def _reset(client: socket.socket) -> bool:
    """Close without goodbye; False, as the connection does not go on."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.shutdown(socket.SHUT_RDWR)
    return False
