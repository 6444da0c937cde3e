"""An agent that is a service of its own: hashes files; law: nothing but the standard library, so that it can be copied and needs no fleet to run.

It answers what every HTTP agent answers: `/health /info /execute /status /action /logs /metrics`. Started by an agent host it listens where
AGENT_PORT says. With MANAGER_URL it registers there and keeps saying that it is there, so it may run on any machine:

    python service.py --port 8100
    curl -d '{"work_type": "sha256", "parameters": {"path": "service.py"}}' localhost:8100/execute
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import hmac
import json
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import OrderedDict, deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

VERSION = "1.0"
HEARTBEAT_S = 15.0
RETRY_FIRST_S, RETRY_MAX_S = 1.0, 30.0  # before the manager is asked again when it was away; doubled each time
BODY_BYTES_MAX = 1024 * 1024
CHUNK_BYTES = 1024 * 1024
RESULTS_MAX = 1000  # remembered, so that a request that comes twice is done once
LOG_LINES_MAX = 10_000
ALGORITHMS = ("sha256", "sha1", "md5", "blake2b")


class Refused(Exception):
    """A request that is not done: the status code, a code for machines and a sentence for people."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


class Agent:
    """The work itself, and where the agent stands."""

    def __init__(self, agent_id: str, name: str) -> None:
        self.id, self.name = agent_id, name
        self.status = "running"
        self.running: dict[str, str] = {}  # request id -> work type
        self.done = 0
        self.log: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self.then = "stop"  # or restart, once it has drained
        self.idle = threading.Condition()
        self._results: OrderedDict[str, dict[str, object]] = OrderedDict()

    def execute(self, body: dict[str, object]) -> dict[str, object]:
        """Do one work; whether it may begin and that it has begun is one decision, so a stop cannot come in between."""
        parameters = body.get("parameters")
        if not isinstance(parameters, dict):
            raise Refused(400, "invalid_request", 'the body needs "parameters", an object')
        work_type = str(body.get("work_type") or ALGORITHMS[0])
        if work_type not in ALGORITHMS:
            raise Refused(400, "unknown_work_type", f"{work_type!r} is none of {', '.join(ALGORITHMS)}")
        request_id = str(body.get("request_id") or f"{self.id}-{time.monotonic_ns()}")
        with self.idle:
            while request_id in self.running:  # the same request once more, while it is being done
                self.idle.wait()
            if request_id in self._results:
                return {**self._results[request_id], "cached": True}
            if self.status != "running":
                raise Refused(409, f"agent_{self.status}", f"agent {self.id} is {self.status} and takes no work")
            self.running[request_id] = work_type
        result: dict[str, object] | None = None
        try:
            result = self._result(work_type, parameters)
            return result
        finally:
            with self.idle:
                del self.running[request_id]
                if result is not None:
                    self.done += 1
                    self._results[request_id] = result
                    while len(self._results) > RESULTS_MAX:
                        self._results.popitem(last=False)
                self.idle.notify_all()

    def act(self, action: str) -> int:
        """Change where the agent stands; the status code of the answer."""
        with self.idle:
            if action == "pause" and self.status in {"running", "paused"}:
                self.status = "paused"
            elif action == "resume" and self.status in {"running", "paused"}:
                self.status = "running"
            elif action in {"stop", "restart"}:
                self.then = action
                self.status = "stopping"
                self.idle.notify_all()
                return 202
            elif action in {"pause", "resume"}:
                raise Refused(409, "invalid_transition", f"an agent that is {self.status} cannot {action}")
            else:
                raise Refused(400, "unknown_command", f"{action!r} is none of pause, resume, stop, restart")
        return 200

    def drain(self, longest_s: float) -> bool:
        """Wait for what runs; whether it has ended in time."""
        with self.idle:
            return self.idle.wait_for(lambda: not self.running, longest_s)

    def about(self) -> dict[str, object]:
        """Where it stands."""
        running = sorted(self.running)
        return {
            "status": self.status,
            "current_task": running[0] if running else None,
            "current_work": running,
            "draining": self.status == "stopping",
            "metrics": {"tasks_total": self.done, "queue": len(running)},
        }

    def note(self, message: str, level: str = "INFO") -> None:
        """A line for people and machines."""
        line = json.dumps({"ts": time.time(), "level": level, "agent_id": self.id, "message": message})
        self.log.append(line)
        print(line, flush=True)  # noqa: T201 - its host reads what it says

    def _result(self, work_type: str, parameters: dict[str, object]) -> dict[str, object]:
        began = time.monotonic()
        path = Path(str(parameters.get("path", "")))
        answer: dict[str, object] = {"agent_id": self.id, "work_type": work_type, "status": "success", "exit_code": 0, "cached": False}
        try:
            digest, size = hashlib.new(work_type), 0
            with path.open("rb") as file:
                while chunk := file.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
            answer["output"] = {"path": str(path), "digest": digest.hexdigest(), "bytes": size}
        except OSError as error:
            message = f"{path} cannot be read: {error.strerror}"
            answer |= {"status": "error", "exit_code": 1, "error": {"code": "execution_failed", "message": message}}
        return {**answer, "resources": {"duration_ms": (time.monotonic() - began) * 1000}}


class Handler(BaseHTTPRequestHandler):
    """One request; every answer is JSON but the metrics."""

    protocol_version = "HTTP/1.1"
    agent: Agent
    tokens: tuple[str, ...] = ()

    def do_GET(self) -> None:
        """What one may look at."""
        url = urlsplit(self.path)
        agent = self.agent
        if url.path == "/metrics":
            lines = f"# TYPE task_running gauge\ntask_running {len(agent.running)}\n# TYPE tasks_total counter\ntasks_total {agent.done}\n"
            self._send(200, lines.encode(), "text/plain; version=0.0.4")
            return
        pages: dict[str, dict[str, object]] = {
            "/health": {"status": "ok"},
            "/info": {
                "id": agent.id,
                "name": agent.name,
                "defaultModel": None,
                "metadata": {"type": "file-hash"},
                "capabilities": dict.fromkeys(ALGORITHMS, VERSION),
                "version": VERSION,
            },
            "/status": agent.about(),
        }
        self._answer(lambda: (200, pages[url.path]) if url.path in pages else self._logs(url.path, url.query))

    def do_POST(self) -> None:
        """What one may ask for."""
        self._answer(self._posted)

    def log_message(self, *_: object) -> None:
        """Requests are no news."""

    def _posted(self) -> tuple[int, dict[str, object]]:
        body = self._body()
        self._check_token()
        if self.path == "/execute":
            return 200, self.agent.execute(body)
        if self.path == "/action":
            status = self.agent.act(str(body.get("action")))
            return status, {
                "status": "success",
                "command": body["action"],
                "agent_id": self.agent.id,
                "result": {"state": self.agent.status},
            }
        raise Refused(404, "not_found", f"there is no {self.path}")

    def _body(self) -> dict[str, object]:
        length = int(self.headers.get("Content-Length") or 0)
        if length > BODY_BYTES_MAX:
            self.close_connection = True
            raise Refused(413, "payload_too_large", f"a body may have {BODY_BYTES_MAX} bytes")
        try:
            body = json.loads(self.rfile.read(length) or b"{}")
        except ValueError as error:
            raise Refused(400, "invalid_request", f"the body is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused(400, "invalid_request", "the body must be an object")
        return body

    def _check_token(self) -> None:
        given = self.headers.get("X-Manager-Token") or ""
        if self.tokens and not any(hmac.compare_digest(given.encode(), token.encode()) for token in self.tokens):
            raise Refused(401, "unauthorized", "X-Manager-Token is missing or wrong")

    def _logs(self, path: str, query: str) -> tuple[int, dict[str, object]]:
        if path != "/logs":
            raise Refused(404, "not_found", f"there is no {path}")
        self._check_token()
        text = parse_qs(query).get("lines", ["100"])[0]
        if not text.isdigit() or not 1 <= int(text) <= LOG_LINES_MAX:
            raise Refused(400, "invalid_request", f"lines must be a number from 1 to {LOG_LINES_MAX}")
        return 200, {"lines": list(self.agent.log)[-int(text) :]}

    def _answer(self, find: object) -> None:
        try:
            status, body = find()  # type: ignore[operator] # a function of ours
        except Refused as refused:
            status, body = refused.status, {"status": "error", "error": {"code": refused.code, "message": str(refused)}}
        except Exception as error:  # noqa: BLE001 - whatever it is, the caller gets JSON and the agent goes on
            self.agent.note(f"{self.path}: {error!r}", "ERROR")
            status, body = 500, {"status": "error", "error": {"code": "execution_failed", "message": repr(error)}}
        self._send(status, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked has left
            self.wfile.write(body)


class Registration(threading.Thread):
    """Tells a manager that the agent is there, again and again; a manager that is away is asked until it is back."""

    def __init__(self, agent: Agent, manager_url: str, service_url: str, token: str) -> None:
        super().__init__(name="registration", daemon=True)
        self._agent, self._url, self._service_url, self._token = agent, manager_url.rstrip("/"), service_url, token
        self._left = threading.Event()

    def run(self) -> None:
        """Register, then beat; a manager that does not know us any more is told anew."""
        known, pause_s = False, RETRY_FIRST_S
        while not self._left.is_set():
            try:
                if known:
                    beat = {"id": self._agent.id, "status": self._agent.status, "metrics": self._agent.about()["metrics"]}
                    self._post("heartbeat", beat)
                else:
                    metadata = {"type": "file-hash", "name": self._agent.name}
                    self._post("register", {"id": self._agent.id, "serviceUrl": self._service_url, "metadata": metadata})
                    known = True
                wait_s, pause_s = HEARTBEAT_S, RETRY_FIRST_S
            except urllib.error.HTTPError as error:
                known, wait_s, pause_s = known and error.code != 404, pause_s, min(pause_s * 2, RETRY_MAX_S)
                self._agent.note(f"the manager answered {error.code}", "WARNING")
            except OSError as error:
                wait_s, pause_s = pause_s, min(pause_s * 2, RETRY_MAX_S)
                self._agent.note(f"the manager cannot be reached: {error}", "WARNING")
            self._left.wait(wait_s)

    def leave(self) -> None:
        """Say good-bye, once."""
        self._left.set()
        with contextlib.suppress(OSError):
            self._post("unregister", {"id": self._agent.id})

    def _post(self, what: str, body: dict[str, object]) -> None:
        headers = {"Content-Type": "application/json", **({"X-Manager-Token": self._token} if self._token else {})}
        url = f"{self._url}/api/agent-services/{what}"
        request = urllib.request.Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - the operator's own manager
        with urllib.request.urlopen(request, timeout=5):  # noqa: S310 - as above
            pass


def main() -> int:
    """Serve until told to stop, then drain and leave; a restart replaces this very process."""
    parser = argparse.ArgumentParser(description="An agent that hashes files, over HTTP.")
    parser.add_argument("--id", default=os.environ.get("AGENT_ID", "file-hash"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=int(os.environ.get("AGENT_PORT", "0")))
    parser.add_argument("--drain", type=float, default=float(os.environ.get("DRAIN_TIMEOUT_SECONDS", "30")))
    options = parser.parse_args()
    agent = Agent(options.id, os.environ.get("AGENT_NAME", options.id))
    Handler.agent = agent
    Handler.tokens = tuple(token for token in os.environ.get("MANAGER_TOKEN", "").split(",") if token)
    server = ThreadingHTTPServer((options.host, options.port), Handler)
    server.daemon_threads = True
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=agent.act, args=("stop",), daemon=True).start())
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    url = f"http://{options.host}:{server.server_address[1]}"
    agent.note(f"listening at {url}")
    manager_url = os.environ.get("MANAGER_URL", "")
    registration = Registration(agent, manager_url, url, next(iter(Handler.tokens), "")) if manager_url else None
    if registration is not None:
        registration.start()
    return _until_told(agent, server, registration, options.drain)


def _until_told(agent: Agent, server: ThreadingHTTPServer, registration: Registration | None, drain_s: float) -> int:
    with agent.idle:
        agent.idle.wait_for(lambda: agent.status == "stopping")
    agent.note(f"draining: {len(agent.running)} works run")
    drained = agent.drain(drain_s)
    if registration is not None:
        registration.leave()
    server.shutdown()
    server.server_close()
    if agent.then == "restart":
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - the same program with the same arguments
    agent.note("stopped" if drained else "stopped before all works had ended")
    return 0 if drained else 1


if __name__ == "__main__":
    sys.exit(main())
