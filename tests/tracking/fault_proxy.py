"""A proxy in front of a real server that injects a fault into each request, selected by its mode.

Used by the tests of tracking.

| mode | effect on a request |
|-|-|
| ``ok`` | forwarded, and the response returned |
| ``refused`` | connection reset before reading; as the mode of all requests, the port is closed |
| ``hanging`` | read, and no response |
| ``late`` | like hanging, and forwarded after the client has closed the connection |
| ``500``, ``503`` | response with this status, and not forwarded |
| ``lost`` | forwarded, and the connection reset instead of a response |
| ``cut`` | forwarded, and the connection reset in the middle of the response body |
| ``slow`` | forwarded, and the response delayed and in two pieces |
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
# The modes without those that last until the client's timeout.
QUICK = tuple(mode for mode in MODES if mode not in ("hanging", "late"))
Rule = Callable[[str, str], str]


class FaultProxy:
    """A proxy that runs in threads of this process, to be used as a context manager.

    Args:
        upstream: URL of the server.

    Attributes:
        url: URL for clients.
        requests: (method, path) of every request that was read.
        rule: returns the mode of a request from its method and path; may be changed at any time,
            as ``mode`` does.
        delay: seconds before each of the two pieces of a slow response.
    """

    def __init__(self, upstream: str) -> None:
        self._upstream = urlsplit(upstream).netloc
        self._listener: socket.socket | None = None
        self._port = 0
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = threading.Event()
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
        self._closed.set()
        self._stop_listening()

    def mode(self, name: str) -> None:
        """Set one mode for all requests from now on."""
        self.rule = lambda method, path: name
        if name == "refused":
            self._stop_listening()
        else:
            self._listen()

    def randomly(self, seed: int, share: float, modes: Sequence[str] = QUICK) -> None:
        """Set a random mode for a random share of the requests from now on."""
        self._listen()
        rng = random.Random(seed)
        self.rule = lambda method, path: rng.choice(modes) if rng.random() < share else "ok"

    def _listen(self) -> None:
        if self._listener is not None:
            return
        listener = socket.create_server(("127.0.0.1", self._port), backlog=50)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def _stop_listening(self) -> None:
        """Close the port and reset all connections."""
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
                while self._serve_request(client):
                    pass
        finally:
            with self._lock:
                self._open.discard(client)
                client.close()

    def _serve_request(self, client: socket.socket) -> bool:
        """Serve one request, and return whether the connection stays open."""
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
        lengths = [value for key, value in headers.items() if key.lower() == "content-length"]
        body = _exactly(client, int(lengths[0]) if lengths else 0)
        if mode in ("500", "503"):
            client.sendall(
                f"HTTP/1.1 {mode} Fault\r\nContent-Length: 7\r\n\r\n".encode() + b"a fault"
            )
            return True
        if mode in ("hanging", "late"):
            self._wait_for_close(client)
            if mode == "late":
                self._forward(method, target, headers, body)
            return _reset(client)
        status, response_headers, data = self._forward(method, target, headers, body)
        return self._respond(client, mode, status, response_headers, data)

    def _respond(
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
        head = f"HTTP/1.1 {status} Response\r\n{kept}Content-Length: {len(data)}\r\n\r\n".encode(
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
        forwarded = {
            key: value
            for key, value in headers.items()
            if key.lower() not in ("host", "connection", "accept-encoding")
        }
        with contextlib.closing(HTTPConnection(self._upstream, timeout=60)) as upstream:
            upstream.request(method, target, body, forwarded)
            response = upstream.getresponse()
            return response.status, response.getheaders(), response.read()

    def _wait_for_close(self, client: socket.socket) -> None:
        """Wait until the client closes the connection, or the proxy is closed."""
        client.settimeout(0.05)
        while not self._closed.is_set():
            try:
                if not client.recv(1, socket.MSG_PEEK):
                    return
            except TimeoutError:
                continue


@contextlib.contextmanager
def each_kind(
    proxy: FaultProxy, mode: str, kind: Callable[[str, str], str], failing: Sequence[int]
) -> Iterator[dict[str, int]]:
    """Set a mode for some requests of each kind.

    Args:
        proxy: the proxy.
        mode: the mode.
        kind: returns the kind of a request from its method and path.
        failing: which requests of each kind get the mode, counted from 1.

    Yields:
        The number of requests by kind.
    """
    counts: dict[str, int] = {}
    lock = threading.Lock()

    def rule(method: str, path: str) -> str:
        with lock:
            name = kind(method, path)
            counts[name] = counts.get(name, 0) + 1
            return mode if counts[name] in failing else "ok"

    proxy.rule = rule
    try:
        yield counts
    finally:
        proxy.mode("ok")


def _head(client: socket.socket) -> bytes:
    """Return the head of a request without the last blank line; empty if the client has closed."""
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
    """Reset a connection. Returns False, since the connection does not stay open."""
    with contextlib.suppress(OSError):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.shutdown(socket.SHUT_RDWR)
    return False
