"""The peer "Restate": its server from npm with default settings, its Python SDK on granian; law: the fastest way that its documentation names.

The server is a program of its own: `npm install --prefix <folder> @restatedev/restate-server` and RESTATE_SERVER=<path of the binary>, or
`restate-server` on the PATH.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from benchmarks.peers import PAYLOAD, Bulk, Env, Record, restate_server
from benchmarks.processes import PeerFailed, Pool

CONNECTIONS_MAX = 500
READY_MAX_S = 60.0


class Restate:
    """A server with its own disk, and services in as many processes as workers are asked for."""

    in_process: frozenset[str] = frozenset()
    cannot: frozenset[str] = frozenset()
    pool: Pool

    def setup(self, env: Env) -> None:
        """Start the server."""
        self._env = env
        self._server = Pool(env, "restate")
        self.pool = Pool(env)
        self._workers = 0
        self._node, self._admin, self._ingress, self._service = _free_ports(4)
        config = env.folder / "restate.toml"
        config.write_text(
            f'base-dir = "{env.folder / "restate"}"\nbind-address = "127.0.0.1:{self._node}"\nlisten-mode = "tcp"\ndisable-telemetry = true\n'
            f'[admin]\nbind-address = "127.0.0.1:{self._admin}"\n[ingress]\nbind-address = "127.0.0.1:{self._ingress}"\n'
        )
        binary = restate_server()
        assert binary is not None, "the command line has looked for it"
        self._server.spawn((binary, "--no-logo", "--config-file", str(config)), {})
        self._loop = asyncio.new_event_loop()
        self._http = Http(self._ingress)
        self._until(lambda: self._do(Http(self._admin).call("GET", "/health", None)), self._server)

    def start_workers(self, count: int) -> None:
        """Have one endpoint with `count` processes, and tell the server of it."""
        if count == self._workers:
            return
        self.pool.stop()
        self._workers = count
        if not count:
            return
        argv = (sys.executable, "-m", "granian", "--interface", "asgi", "--http", "2", "--no-ws", "--port", str(self._service))
        self.pool.spawn((*argv, "--workers", str(count), "--log-level", "warning", "benchmarks.peers.restate_app:app"), {})
        deployment = {"uri": f"http://127.0.0.1:{self._service}", "force": True}
        self._until(lambda: self._do(Http(self._admin).call("POST", "/deployments", deployment)), self.pool)

    def run_sequential(self, count: int, steps: int) -> list[float]:
        """One call after the other."""
        return self._do(self._sequential(count, steps))

    def run_bulk(self, count: int, steps: int) -> Bulk:
        """All calls at once, over as many connections as the server likes."""
        began = time.perf_counter()
        order = {"payload": PAYLOAD, "steps": steps}
        for answer in self._do(self._all([("/bench/sequential", order)] * count)):
            self._expect(answer, PAYLOAD)
        return Bulk(wall_s=time.perf_counter() - began, started_s=0.0)

    def run_parallel(self, steps: int) -> float:
        """Gather in one handler."""
        began = time.perf_counter()
        self._expect(self._do(self._http.call("POST", "/bench/parallel", {"payload": PAYLOAD, "steps": steps})), steps)
        return time.perf_counter() - began

    def run_signals(self, count: int) -> float:
        """Durable promises of a workflow, kept over many connections."""
        return self._do(self._signals(count))

    def run_timers(self, count: int, seconds: float) -> list[float]:
        """Durable sleeps."""
        return [float(late) for late in self._do(self._all([("/bench/nap", seconds)] * count))]

    def record(self) -> Record | None:
        """Completed invocations are kept for a time, their steps are not counted."""
        return None

    def versions(self) -> dict[str, str]:
        """The SDK, what serves it, and the server."""
        found = {name: importlib.metadata.version(name) for name in ("restate-sdk", "granian")}
        return {**found, "restate-server": str(self._do(Http(self._admin).call("GET", "/version", None))["version"])}

    def teardown(self) -> None:
        """End the services, then the server."""
        if hasattr(self, "pool"):
            self.pool.stop()
            self._server.stop()

    async def _sequential(self, count: int, steps: int) -> list[float]:
        latencies = []
        for _ in range(count):
            began = time.perf_counter()
            self._expect(await self._http.call("POST", "/bench/sequential", {"payload": PAYLOAD, "steps": steps}), PAYLOAD)
            latencies.append(time.perf_counter() - began)
        return latencies

    async def _all(self, calls: Sequence[tuple[str, Any]]) -> list[Any]:
        return await asyncio.gather(*(self._http.call("POST", path, body) for path, body in calls))

    async def _signals(self, count: int) -> float:
        key = uuid.uuid4().hex
        result = asyncio.ensure_future(self._http.call("POST", f"/collect/{key}/run", count))
        await asyncio.sleep(0.05)
        began = time.perf_counter()
        items = [(f"/collect/{key}/item", {"number": number, "payload": PAYLOAD}) for number in range(count)]
        await self._all(items)
        self._expect(await result, count)
        return time.perf_counter() - began

    def _do(self, coroutine: Any) -> Any:  # noqa: ANN401 - of any result
        return self._loop.run_until_complete(coroutine)

    def _until(self, act: Any, pool: Pool) -> None:  # noqa: ANN401 - a call that works or not
        deadline = time.monotonic() + READY_MAX_S
        while True:
            try:
                act()
                return
            except (OSError, PeerFailed, asyncio.IncompleteReadError):
                pool.check()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _expect(self, got: object, wanted: object) -> None:
        if got != wanted:
            raise PeerFailed(f"Restate gave {got!r}, expected {wanted!r}\n{self.pool.log_tail()}")


class Http:
    """As much of HTTP/1.1 as JSON calls need, over kept connections: a client that costs next to nothing."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._gate: asyncio.Semaphore | None = None

    async def call(self, method: str, path: str, body: Any) -> Any:  # noqa: ANN401 - JSON
        """The answer to one request."""
        self._gate = self._gate or asyncio.Semaphore(CONNECTIONS_MAX)
        async with self._gate:
            reader, writer = self._free.pop() if self._free else await asyncio.open_connection("127.0.0.1", self._port)
            text = b"" if body is None else json.dumps(body).encode()
            head = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n"
            writer.write(head.encode() + text)
            status = int((await reader.readline()).split()[1])
            headers: dict[str, str] = {}
            while line := (await reader.readline()).strip():
                name, _, value = line.decode().partition(":")
                headers[name.lower()] = value.strip()
            if headers.get("transfer-encoding") == "chunked":
                parts = []
                while size := int(await reader.readline(), 16):
                    parts.append(await reader.readexactly(size))
                    await reader.readline()
                await reader.readline()
                answer = b"".join(parts)
            else:
                answer = await reader.readexactly(int(headers.get("content-length", "0")))
            self._free.append((reader, writer))
        if status >= 300:
            raise PeerFailed(f"Restate answered {status} to {method} {path}: {answer.decode(errors='replace')[:500]}")
        return json.loads(answer) if answer else None


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in held]
    for server in held:
        server.close()
    return ports
