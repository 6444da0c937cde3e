"""A service of somebody else's, on a port of this machine; law: it answers what it is told to answer, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar


class Dummy:
    """The service: `answers` by path, `asked` in order."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, Any]] = {
            "/health": (200, {"status": "ok"}),
            "/info": (200, {"id": "planner", "name": "Planner", "defaultModel": "m-1", "metadata": {}}),
            "/status": (200, {"status": "running", "current_task": None}),
            "/logs": (200, {"lines": ["one", "two"]}),
            "/execute": (200, {"echo": "hello"}),
            "/action": (200, {"status": "success"}),
        }
        self.asked: list[tuple[str, str, dict[str, str], Any]] = []
        self.released = threading.Event()
        self.released.set()
        handler = type("Handler", (_Handler,), {"dummy": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    dummy: ClassVar[Dummy]

    def do_GET(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: Any) -> None:
        path, _, _ = self.path.partition("?")
        self.dummy.asked.append((self.command, self.path, dict(self.headers), body))
        self.dummy.released.wait(20)
        status, value = self.dummy.answers[path]
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        try:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
        except OSError:
            pass  # the caller did not wait

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def dummy_service() -> Iterator[Dummy]:
    dummy = Dummy()
    thread = threading.Thread(target=dummy.server.serve_forever, name="dummy-service", daemon=True)
    thread.start()
    try:
        yield dummy
    finally:
        dummy.released.set()
        dummy.server.shutdown()
        dummy.server.server_close()
        thread.join()
