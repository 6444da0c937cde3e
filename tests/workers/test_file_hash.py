"""The shipped service agent, as a process of its own, spoken to over HTTP as anybody would."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "workers" / "packages" / "file_hash" / "service.py"
END_MAX_S = 15


class Running:
    """The process and a client for it; its lines are read until it says where it listens."""

    def __init__(self, *args: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(SCRIPT), *args], env={**os.environ, **env}, stdout=subprocess.PIPE, text=True, cwd="/"
        )
        self.client = httpx.Client(base_url=self.await_url(), timeout=10)

    def await_url(self) -> str:
        while True:
            message: str = json.loads(self.line())["message"]
            if message.startswith("listening at "):
                return message.removeprefix("listening at ")

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended"
        return line

    def execute(self, **body) -> httpx.Response:
        return self.client.post("/execute", json=body)

    def close(self) -> None:
        self.client.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def service() -> Iterator[Running]:
    running = Running("--id", "h-1")
    yield running
    running.close()


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """A file whose reading takes until somebody writes."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    return path


def write(fifo: Path, text: str) -> None:
    fifo.write_text(text)


@pytest.mark.req("S1-05")
@pytest.mark.req("S1-06")
def test_it_says_that_it_is_there_and_who_it_is(service):
    assert service.client.get("/health").json() == {"status": "ok"}
    info = service.client.get("/info").json()
    assert {"id", "name", "defaultModel", "metadata"} <= info.keys()
    assert (info["id"], "sha256" in info["capabilities"]) == ("h-1", True)


@pytest.mark.req("S1-07")
def test_it_hashes_a_file_and_one_that_cannot_be_read_is_an_error_of_the_work(service):
    reply = service.execute(work_type="sha256", parameters={"path": str(SCRIPT)})
    assert (reply.status_code, reply.json()["output"]["digest"]) == (200, hashlib.sha256(SCRIPT.read_bytes()).hexdigest())
    assert service.execute(parameters={"path": "/nowhere"}).json()["exit_code"] == 1


@pytest.mark.req("S1-11")
@pytest.mark.parametrize(
    "method, path, body, status",
    [
        ("POST", "/execute", b"{}", 400),
        ("POST", "/execute", b"[]", 400),
        ("POST", "/execute", b"{", 400),
        ("POST", "/execute", b'{"parameters": {}, "work_type": "md6"}', 400),
        ("POST", "/action", b'{"action": "dance"}', 400),
        ("GET", "/logs?lines=abc", None, 400),
        ("GET", "/nothing", None, 404),
        ("POST", "/nothing", b"{}", 404),
    ],
)
def test_whatever_is_wrong_is_told_in_json_with_its_status(service, method, path, body, status):
    reply = service.client.request(method, path, content=body)
    assert (reply.status_code, reply.json()["status"]) == (status, "error")
    assert reply.json()["error"]["message"]


@pytest.mark.req("S1-11")
def test_a_body_that_is_too_large_is_refused_unread(service):
    assert service.client.post("/execute", content=b"x" * 2_000_000).status_code == 413


@pytest.mark.req("S1-12")
def test_a_paused_agent_takes_no_work_until_it_is_resumed(service):
    assert service.client.post("/action", json={"action": "pause"}).json()["result"] == {"state": "paused"}
    assert service.execute(parameters={"path": str(SCRIPT)}).json()["error"]["code"] == "agent_paused"
    service.client.post("/action", json={"action": "resume"})
    assert service.execute(parameters={"path": str(SCRIPT)}).status_code == 200


@pytest.mark.req("S3-15")
def test_the_same_request_at_once_and_once_more_is_done_once(service, fifo):
    with ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(service.execute, parameters={"path": str(fifo)}, request_id="r-1") for _ in range(3)]
        write(fifo, "once")
        answers = [one.result().json() for one in asked]
    assert {one["output"]["digest"] for one in answers} == {hashlib.sha256(b"once").hexdigest()}
    assert sorted(one["cached"] for one in answers) == [False, True, True]
    assert "tasks_total 1\n" in service.client.get("/metrics").text


@pytest.mark.req("S1-08")
@pytest.mark.req("S1-20")
@pytest.mark.req("S1-47")
def test_a_stop_refuses_what_comes_finishes_what_runs_and_leaves(service, fifo):
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(service.execute, parameters={"path": str(fifo)}, request_id="r-1")
        while service.client.get("/status").json()["current_task"] != "r-1":
            pass
        assert service.client.post("/action", json={"action": "stop"}).status_code == 202
        refused = service.execute(parameters={"path": str(SCRIPT)})
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "agent_stopping")
        write(fifo, "last")
        assert running.result().json()["exit_code"] == 0
    assert service.process.wait(END_MAX_S) == 0


@pytest.mark.req("S1-41")
def test_a_restart_is_the_same_process_with_a_new_program(service):
    service.client.post("/action", json={"action": "restart"})
    pid = service.process.pid
    with httpx.Client(base_url=service.await_url(), timeout=10) as again:
        assert again.get("/health").status_code == 200
    assert service.process.poll() is None
    assert service.process.pid == pid


@pytest.mark.req("S1-20")
def test_what_does_not_end_in_time_is_left_and_said(fifo):
    running = Running("--drain", "0.1")
    try:
        with ThreadPoolExecutor(1) as pool:
            stuck = pool.submit(running.execute, parameters={"path": str(fifo)}, request_id="r-1")
            while not running.client.get("/status").json()["current_work"]:
                pass
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(END_MAX_S) == 1
            assert isinstance(stuck.exception(), httpx.HTTPError)
    finally:
        running.close()


@pytest.mark.req("S1-24")
@pytest.mark.req("S1-26")
def test_with_tokens_set_one_of_them_is_needed_to_act_and_none_to_look():
    running = Running(MANAGER_TOKEN="old,new")
    try:
        assert running.execute(parameters={"path": str(SCRIPT)}).status_code == 401
        assert running.client.get("/health").status_code == 200
        for token in ("old", "new"):
            reply = running.client.post("/execute", json={"parameters": {"path": str(SCRIPT)}}, headers={"X-Manager-Token": token})
            assert reply.status_code == 200
    finally:
        running.close()


@pytest.mark.req("S1-44")
def test_it_registers_with_a_manager_that_comes_late_and_says_good_bye():
    heard: list[tuple[str, dict[str, str]]] = []

    class Manager(BaseHTTPRequestHandler):
        def do_POST(self):
            heard.append((self.path.rpartition("/")[2], json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(503 if len(heard) == 1 else 200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Manager) as manager:
        Thread(target=manager.serve_forever, daemon=True).start()
        running = Running("--id", "h-1", MANAGER_URL=f"http://127.0.0.1:{manager.server_address[1]}")
        try:
            while len(heard) < 2:
                running.line() if len(heard) < 1 else None
            running.process.send_signal(signal.SIGTERM)
            assert running.process.wait(END_MAX_S) == 0
        finally:
            running.close()
            manager.shutdown()
    assert [what for what, _ in heard] == ["register", "register", "unregister"]
    assert heard[1][1]["serviceUrl"] == str(running.client.base_url).rstrip("/")
