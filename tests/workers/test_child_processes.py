"""Processes of agents: they are what was asked for, whatever they do ends, and nothing of them is left."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

from orchestrator.errors import FleetError
from schemas.agents import AgentKind, AgentSpec
from schemas.messages import ErrorCode
from tests.workers.child_kit import OBEDIENT, WAIT_MAX_S, Told, child, gone, hosting, lines_of, lives, service
from workers.child import hosted, tail
from workers.child.logs import FILES_MAX

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc and waits by pidfd")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def host(tmp_path, told):
    with hosting(tmp_path, told) as processes:
        yield processes


def stubborn(report: str = "") -> str:
    """Python that ignores SIGTERM."""
    return f"import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('{report}', flush=True); time.sleep(1000)"


@pytest.mark.req("S0-24")
def test_the_argument_list_is_the_one_of_the_spec_and_no_shell_sees_it(host):
    awkward = ("-c", "import sys; sys.stdin.read()", "$HOME; echo 'x' \"y\"", "", "ü *")
    spec = AgentSpec(id="a", type="t", kind=AgentKind.CHILD, executable="python", args=awkward)
    pid = host.start(spec).result(WAIT_MAX_S).pid
    argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")[:-1]
    assert argv == [sys.executable, *awkward]


@pytest.mark.req("S2-32")
def test_an_agent_knows_who_it_is_and_no_secret(tmp_path, told, monkeypatch):
    secrets = {
        "AWS_SECRET_ACCESS_KEY": "x1",
        "GITHUB_TOKEN": "x2",
        "DB_PASSWORD": "x3",
        "MANAGER_TOKEN": "x4",
        "CACHE": "redis://:x5@cache/0",
        "APP_API_KEY": "x6",
    }
    for name, text in (secrets | {"HARMLESS": "http://yes:80/a@b", "WANTED_TOKEN": "w"}).items():
        monkeypatch.setenv(name, text)
    broker = "amqp://user:hidden@broker:5672//"
    database = "postgresql+psycopg://u:hidden@db/x"
    with hosting(tmp_path, told, broker_url=broker, database_url=database, agent_secrets=("WANTED_TOKEN",)) as host:
        spec = child(OBEDIENT, "agent-7", name="Seven", version="1.2.3")
        known = environment_of(host.start(spec).result(WAIT_MAX_S).pid)
        served = environment_of(host.start(service("sleep", "1000", agent_id="web")).result(WAIT_MAX_S).pid)
    assert (
        known.items()
        >= {
            "AGENT_ID": "agent-7",
            "AGENT_TYPE": "test",
            "AGENT_NAME": "Seven",
            "AGENT_VERSION": "1.2.3",
            "BROKER_URL": "amqp://user@broker:5672//",
            "NATS_URL": "amqp://user@broker:5672//",
            "HARMLESS": "http://yes:80/a@b",
            "WANTED_TOKEN": "w",
        }.items()
    )
    assert "hidden" not in str(known), "a child needs neither broker nor database"
    assert served["BROKER_URL"] == served["NATS_URL"] == broker
    assert not {name for name in secrets if secrets[name] in (*known.values(), *served.values())}
    assert not [name for name in known.keys() | served.keys() if name.startswith("ORCHESTRATOR_")]


def test_a_service_knows_its_port_and_its_manager(tmp_path, told):
    with hosting(tmp_path, told, manager_token="new,old", api_port=8123) as host:
        spec = service("sleep", "1000").model_copy(update={"port": 8101, "drain_timeout_s": 90.0})
        known = environment_of(host.start(spec).result(WAIT_MAX_S).pid)
    wanted = {"AGENT_PORT": "8101", "MANAGER_URL": "http://127.0.0.1:8123", "MANAGER_TOKEN": "new,old", "DRAIN_TIMEOUT_SECONDS": "90"}
    assert known.items() >= wanted.items()


def test_a_native_agent_loads_the_settings_of_its_host(tmp_path, told):
    with hosting(tmp_path, told, database_url="postgresql+psycopg://u:p@db/x") as host:
        spec = AgentSpec(id="n", type="echo", kind=AgentKind.NATIVE)
        pid = host.start(spec, argv=("sleep", "1000")).result(WAIT_MAX_S).pid
        assert environment_of(pid)["ORCHESTRATOR_DATABASE_URL"] == "postgresql+psycopg://u:p@db/x"


def environment_of(pid: int) -> dict[str, str]:
    pairs = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(pair.split("=", 1) for pair in pairs if pair)


@pytest.mark.req("S2-34")
@pytest.mark.parametrize(
    "program, cwd, because",
    [
        ("nowhere-to-be-found", None, "'nowhere-to-be-found' was not found"),
        ("./text", None, "is not an executable file"),
        ("./script", None, "a script needs a first line"),
        ("sleep", "missing", "which is no folder"),
        ("sleep\0", None, "null byte"),
    ],
)
def test_what_cannot_be_started_says_why_and_does_not_hang(host, told, tmp_path, program, cwd, because):
    (tmp_path / "text").write_text("no program")
    (tmp_path / "script").write_text("echo")
    (tmp_path / "script").chmod(0o755)
    start = host.start(service(program), cwd=tmp_path / (cwd or "."))
    with pytest.raises(FleetError, match=because) as failed:
        start.result(WAIT_MAX_S)
    assert failed.value.code is ErrorCode.START_FAILED
    assert because in told.wait("s-1", "start_failed")[0]
    assert host.running() == ()


def test_an_agent_without_a_program_cannot_be_started(host):
    with pytest.raises(FleetError, match="neither an executable nor an entry point"):
        host.start(AgentSpec(id="x", type="t", kind=AgentKind.HTTP)).result(WAIT_MAX_S)


@pytest.mark.req("S2-38")
@pytest.mark.parametrize("code, number", [("import sys; sys.exit(3)", 3), ("", 0), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_an_exit_is_told_with_its_code(host, told, code, number):
    host.start(child(code)).result(WAIT_MAX_S)
    (ended,) = told.wait("c-1", "exited")
    assert (ended.code, ended.asked, ended.forced) == (number, False, False)
    assert host.running() == ()


def test_an_exit_that_was_asked_for_is_told_as_such_whatever_its_code(host, told):
    host.start(service("sleep", "1000")).result(WAIT_MAX_S)
    ended = host.stop("s-1").result(WAIT_MAX_S)
    assert (ended.code, ended.asked, ended.forced) == (-signal.SIGTERM, True, False)
    assert told.wait("s-1", "exited") == [ended]


@pytest.mark.req("S2-29")
def test_a_killed_agent_is_noticed_at_once(host, told):
    pid = host.start(child(OBEDIENT)).result(WAIT_MAX_S).pid
    os.kill(pid, signal.SIGKILL)
    assert told.wait("c-1", "exited", max_s=2.0)[0].code == -signal.SIGKILL


@pytest.mark.req("S2-35")
def test_one_that_ignores_the_signal_is_killed_after_its_grace(host, told):
    host.start(service(sys.executable, "-c", stubborn("ready"))).result(WAIT_MAX_S)
    lines_of(host.log_folder / "s-1.log", 1, lambda: True)
    ended = host.stop("s-1", grace_s=0.3).result(0.3 + 6)
    assert (ended.code, ended.asked, ended.forced) == (-signal.SIGKILL, True, True)


def test_a_stop_can_be_made_shorter(host):
    host.start(service(sys.executable, "-c", stubborn("ready"))).result(WAIT_MAX_S)
    lines_of(host.log_folder / "s-1.log", 1, lambda: True)
    long = host.stop("s-1", grace_s=1000)
    assert host.kill("s-1").result(WAIT_MAX_S) == long.result(WAIT_MAX_S)


def test_a_stop_may_overtake_its_start(host, told):
    start, stop = host.start(service("sleep", "1000")), host.stop("s-1")
    assert stop.result(WAIT_MAX_S).pid == start.result(WAIT_MAX_S).pid
    failing, never = host.start(service("nowhere-to-be-found")), host.stop("s-1")
    for future in (failing, never):
        with pytest.raises(FleetError, match="was not found"):
            future.result(WAIT_MAX_S)


def test_an_agent_runs_once_and_only_who_runs_can_be_stopped(host):
    host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match="runs here already") as twice:
        host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match="no process of agent 'other' runs here") as unknown:
        host.stop("other").result(WAIT_MAX_S)
    assert (twice.value.code, unknown.value.code) == (ErrorCode.INVALID_TRANSITION, ErrorCode.AGENT_UNAVAILABLE)
    host.kill("c-1").result(WAIT_MAX_S)
    host.start(child(OBEDIENT)).result(WAIT_MAX_S)


FAMILY = """
import os, subprocess, sys, time
def pids(*more): print(os.getpid(), *more, flush=True)
near = subprocess.Popen(["sleep", "1000"])                                   # in the group
far = subprocess.Popen(["setsid", "sleep", "1000"])                          # in a session of its own
lost = subprocess.check_output(["sh", "-c", "setsid sleep 1000 >&- 2>&- & echo $!"], text=True)   # its parent is gone
bare = subprocess.Popen(["sh", "-c", "trap '' TERM HUP; while :; do sleep 1000; done"])    # does not listen
open(sys.argv[1], "w").write("\\n".join(map(str, [os.getpid(), near.pid, far.pid, int(lost), bare.pid])) + "\\n")
"""
STAYS = FAMILY + "sys.stdin.read() if not os.isatty(0) else 0; time.sleep(1000)"


def family(tmp_path: Path) -> tuple[AgentSpec, Path]:
    return AgentSpec(
        id="f", type="t", kind=AgentKind.CHILD, executable="python", args=("-c", STAYS, str(tmp_path / "pids"))
    ), tmp_path / "pids"


@pytest.mark.parametrize("how", ["stopped", "killed", "crashed"])
def test_what_an_agent_has_started_goes_with_it(host, told, tmp_path, how):
    spec, file = family(tmp_path)
    host.start(spec).result(WAIT_MAX_S)
    pids = [int(line) for line in lines_of(file, 5, lambda: bool(host.running()))]
    assert all(map(lives, pids))
    if how == "crashed":
        os.kill(pids[0], signal.SIGKILL)
    else:
        host.stop("f", grace_s=0.5 if how == "stopped" else 0)
    told.wait("f", "exited")
    assert [pid for pid in pids if lives(pid)] == [], "told only when all are gone"


HOST = """
import os, sys, threading
from pathlib import Path
from orchestrator.settings import load
from schemas.agents import AgentSpec
from tests.workers.child_kit import Told
from workers.child import Processes
host = Processes(load({}, home=Path(sys.argv[1])), Told())
for spec in sys.argv[2:]:
    host.start(AgentSpec.model_validate_json(spec)).result(20)
print(*(running.pid for running in host.running()), flush=True)
if sys.stdin.readline() == "fork\\n" and not os.fork():
    print(os.getpid(), flush=True)
threading.Event().wait()
"""


@pytest.fixture
def doomed_host(tmp_path):
    """A host in a process of its own, to be killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*specs: AgentSpec) -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", HOST, str(tmp_path), *(spec.model_dump_json() for spec in specs)]
        started.append(subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.req("S0-33")
def test_nothing_of_an_agent_outlives_a_host_that_is_killed(doomed_host, tmp_path):
    spec, file = family(tmp_path)
    process = doomed_host(spec, child(OBEDIENT, "good"), service(sys.executable, "-c", stubborn(), agent_id="stubborn"))
    pids = [int(pid) for pid in process.stdout.readline().split()]
    pids += [int(line) for line in lines_of(file, 5, lambda: process.poll() is None)]
    process.kill()
    assert [pid for pid in pids if not gone(pid, 5.0)] == []


def test_a_fork_that_outlives_the_host_keeps_no_agent_alive(doomed_host):
    process = doomed_host(service("sleep", "1000"))
    pid = int(process.stdout.readline())
    process.stdin.write("fork\n")
    process.stdin.flush()
    fork = int(process.stdout.readline())
    try:
        process.kill()
        assert gone(pid, 5.0), "the fork holds copies of all pipes, but the kernel tells the guard"
    finally:
        os.kill(fork, signal.SIGKILL)


def guard_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_an_agent_whose_guard_is_killed_dies_and_is_told_dead(host, told):
    pid = host.start(child(OBEDIENT)).result(WAIT_MAX_S).pid
    os.kill(guard_of(pid), signal.SIGKILL)
    ended = told.wait("c-1", "exited")[0]
    assert (ended.code, ended.forced) == (-signal.SIGKILL, True)
    assert gone(pid)


def test_an_agent_that_stops_its_guard_is_ended_all_the_same(host, told, monkeypatch):
    monkeypatch.setattr(hosted, "GUARD_MAX_S", 0.2)
    pid = (
        host.start(child("import os, signal, time; os.kill(os.getppid(), signal.SIGSTOP); print('x', flush=True); time.sleep(1000)"))
        .result(WAIT_MAX_S)
        .pid
    )
    told.wait("c-1", "dead_letter")
    assert host.stop("c-1", grace_s=0.1).result(WAIT_MAX_S).code == -signal.SIGKILL
    assert gone(pid)


def test_signals_are_an_agents_own_from_the_start(host, tmp_path):
    """Python ignores SIGPIPE, and Celery's main process blocks and handles others: an agent begins with none of that."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        pid = host.start(service("sleep", "1000")).result(WAIT_MAX_S).pid
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
    assert (int(status["SigIgn"], 16), int(status["SigBlk"], 16)) == (0, 0)
    assert os.getsid(pid) == os.getpgid(pid) == pid


@pytest.mark.req("S2-33")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_ten_megabytes_of_output_block_nobody_and_are_in_the_log(host, told, stream):
    out = f"file=sys.{stream}"
    code = f"import sys\nfor n in range(100_000): print(('line %06d' % n).ljust(99, '.'), {out})\nprint('the end', {out}, flush=True)"
    host.start(service(sys.executable, "-c", code)).result(WAIT_MAX_S)
    assert told.wait("s-1", "exited", max_s=60)[0].code == 0
    last = tail(host.log_folder, "s-1", 3)
    assert [record["message"].rstrip(".") for record in last] == ["line 099998", "line 099999", "the end"]
    assert {"ts", "level", "agent_id", "trace_id", "message"} == last[0].keys()
    assert len(list(host.log_folder.glob("s-1.log*"))) in range(2, FILES_MAX + 1)


def test_a_log_line_of_an_agent_keeps_its_own_words(host, told):
    said = {"ts": "2025-11-10T14:23:45.123Z", "level": "warning", "agent_id": "liar", "trace_id": "t-1", "message": "hot", "degrees": 90}
    code = f"import sys; sys.stderr.write('{json.dumps(said)}\\n'); sys.stderr.buffer.write(b'\\xff plain ERROR\\n' + b'x' * 200_000 + b'\\nend')"
    host.start(child(code)).result(WAIT_MAX_S)
    told.wait("c-1", "exited")
    first, second, third, fourth = tail(host.log_folder, "c-1", 10)
    assert first == said | {"agent_id": "c-1", "level": "WARNING"}
    assert (second["message"], second["level"]) == ("\\xff plain ERROR", "ERROR")
    assert third["message"].endswith("… (200000 in all)")
    assert len(third["message"]) < 20_000
    assert fourth["message"] == "end"


@pytest.mark.req("S2-39")
@pytest.mark.slow
def test_a_hundred_starts_and_stops_leave_neither_descriptors_nor_threads_nor_zombies(host, told):
    def have() -> tuple[int, int, int]:
        zombies = [p for p in Path("/proc").iterdir() if p.name.isdigit() and stat_of(p)[1:3] == ["Z", str(os.getpid())]]
        return len(list(Path("/proc/self/fd").iterdir())), threading.active_count(), len(zombies)

    host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    host.stop("c-1", drain_s=5).result(WAIT_MAX_S)
    before = have()
    for n in range(100):
        host.start(child(OBEDIENT)).result(WAIT_MAX_S)
        ended = host.stop("c-1", drain_s=5 if n % 2 else 0).result(WAIT_MAX_S)
        assert n % 2 == 0 or ended.code == 0
    assert have() == before


def stat_of(process: Path) -> list[str]:
    try:
        text = (process / "stat").read_text()
    except OSError:
        return ["", "", ""]
    return [process.name, *text.rpartition(")")[2].split()[:2]]


def test_many_start_and_stop_at_once(host, told):
    specs = [child(OBEDIENT, f"c-{n}") for n in range(30)]
    assert not wait([host.start(spec) for spec in specs], 60).not_done
    assert len(host.running()) == 30
    assert not wait([host.stop(spec.id, drain_s=30) for spec in specs], 60).not_done
    assert {told.wait(spec.id, "exited")[0].code for spec in specs} == {0}


def test_a_process_without_descriptors_left_says_so(host):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 2, hard))
        with pytest.raises(FleetError, match="could not be started"):
            host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    host.start(child(OBEDIENT)).result(WAIT_MAX_S)
