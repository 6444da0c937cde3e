"""A server in a process of its own; law: it has ended when the block ends."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx

from orchestrator.clock import SYSTEM
from orchestrator.servers import free_ports

ROOT = Path(__file__).resolve().parents[2]
READY_MAX_S = 60.0


class Server:
    """`orchestrator api`, and a client that speaks to it."""

    def __init__(self, folder: Path, *words: str, scheme: str = "http", tls: Any = True, **settings: object) -> None:
        (self.port,) = free_ports(1)
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        self.log = folder / f"api-{self.port}.log"
        self.process = launched(folder, self.log, "--port", str(self.port), *words, **settings)
        self.http = httpx.Client(base_url=self.url, timeout=20, verify=tls)

    def await_ready(self) -> None:
        deadline = SYSTEM.monotonic() + READY_MAX_S
        while not self.answers():
            assert self.process.poll() is None, self.log.read_text()
            assert SYSTEM.monotonic() < deadline, self.log.read_text()
            SYSTEM.sleep(0.05)

    def answers(self) -> bool:
        try:
            return self.http.get("/health").status_code == 200
        except httpx.TransportError:
            return False


def launched(folder: Path, log: Path, *words: str, **settings: object) -> subprocess.Popen[bytes]:
    environment = {name: text for name, text in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    environment |= {f"ORCHESTRATOR_{name.upper()}": str(value) for name, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "orchestrator.cli", "api", *words]
    with log.open("wb") as out:
        return subprocess.Popen(argv, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)


@contextmanager
def served(folder: Path, *words: str, **options: Any) -> Iterator[Server]:
    server = Server(folder, *words, **options)
    try:
        server.await_ready()
        yield server
    finally:
        server.http.close()
        server.process.terminate()
        try:
            server.process.wait(20)
        finally:
            server.process.kill()
            server.process.wait()
