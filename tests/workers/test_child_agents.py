"""The protocol, asked of any program: it runs in a shell, without us, and answers as `docs/agent-protocol.md` says.

By default the programs are the template and the children that come with us; `CHILD="python my_agent.py" pytest <this file>` asks yours.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from schemas import frames as protocol
from schemas.frames import MEMBERS, AckFrame, ErrorFrame, FlushCommand, Frame, HeartbeatFrame, SequenceCommand, SummaryFrame, read
from tests.workers.child_kit import WAIT_MAX_S, Told, child, gone, hosting

PACKAGES = Path(__file__).resolve().parents[2] / "workers" / "packages"
TEMPLATE = PACKAGES / "_template" / "agent.py"
MONITOR = PACKAGES / "system_monitor" / "agent.py"
DOCUMENT = PACKAGES.parents[1] / "docs" / "agent-protocol.md"
SMALLEST = DOCUMENT.read_text().partition("# smallest.py\n")[2].partition("```")[0]
PROGRAMS: dict[str, tuple[str, ...]] = {path.parent.name: (sys.executable, str(path)) for path in (TEMPLATE, MONITOR)}
PROGRAMS["smallest"] = (sys.executable, "-c", SMALLEST)
if os.environ.get("CHILD"):
    PROGRAMS = {"yours": tuple(shlex.split(os.environ["CHILD"]))}
LEAVE_MAX_S = 5.0
STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


class Program:
    """A child in a shell: we are at its pipes, and nobody else is there."""

    def __init__(self, argv: tuple[str, ...], **variables: str) -> None:
        env = {"PATH": os.environ["PATH"], "AGENT_HEARTBEAT_INTERVAL_S": "0.2", **variables}
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=env, cwd="/", text=True)
        self.frames: list[Frame] = []
        self._lines: queue.Queue[str] = queue.Queue()
        self._log: queue.Queue[str] = queue.Queue()
        self._readers = [threading.Thread(target=self._read), threading.Thread(target=self._keep)]
        for reader in self._readers:
            reader.start()

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self, wanted: Callable[[Frame], bool], max_s: float = WAIT_MAX_S) -> Any:
        """The next frame of a kind; on the way every line must be a frame."""
        while True:
            line = self._lines.get(timeout=max_s)
            assert line, f"it left: {self._log.queue}"
            self.frames.append(read(line.encode()))
            if wanted(self.frames[-1]):
                return self.frames[-1]

    def summary(self, max_s: float = WAIT_MAX_S) -> SummaryFrame:
        self.tell('{"cmd":"flush"}')
        found: SummaryFrame = self.hear(lambda frame: isinstance(frame, SummaryFrame), max_s)
        return found

    def acknowledged(self, command: str, max_s: float = WAIT_MAX_S) -> AckFrame:
        found: AckFrame = self.hear(lambda frame: isinstance(frame, AckFrame) and frame.ack_command == command, max_s)
        return found

    def rest(self, max_s: float = LEAVE_MAX_S) -> list[Frame]:
        """What it says until it leaves; it must."""
        self.process.wait(max_s)
        self._readers[0].join(WAIT_MAX_S)
        lines = list(iter(self._lines.get_nowait, ""))
        return [read(line.encode()) for line in lines]

    def logged(self) -> str:
        """The next line of its log."""
        return self._log.get(timeout=WAIT_MAX_S)

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.removesuffix("\n"))
        self._lines.put("")

    def _keep(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.put(line)

    def close(self) -> None:
        self.process.kill()
        for reader in self._readers:
            reader.join(WAIT_MAX_S)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what we said last was never read
                pipe.close()
        self.process.wait()


@contextmanager
def running(*argv: str, **variables: str) -> Iterator[Program]:
    program = Program(argv, **variables)
    try:
        yield program
    finally:
        program.close()


@pytest.fixture(params=PROGRAMS)
def program(request) -> Iterator[Program]:
    with running(*PROGRAMS[request.param]) as found:
        yield found


# --- what every child must do --------------------------------------------------------------------------------------------------


@pytest.mark.req("S0-01")
@pytest.mark.req("S0-13")
@pytest.mark.req("S0-04")
def test_it_gives_signs_of_life_by_itself_and_says_nothing_but_frames(program):
    beats = [program.hear(lambda frame: isinstance(frame, HeartbeatFrame)) for _ in range(4)]
    assert [frame.timestamp for frame in beats] == sorted({frame.timestamp for frame in beats})
    assert all({"cpu", "mem", "queue", "latency_ms"} <= frame.metrics.keys() for frame in beats)


@pytest.mark.req("S0-07")
def test_a_flush_gives_a_summary_and_the_next_begins_where_it_ended(program):
    first, second = program.summary(), program.summary()
    assert first.start <= first.end == second.start <= second.end


@pytest.mark.req("S0-18")
@pytest.mark.req("S0-19")
def test_the_sequence_of_the_end_is_acknowledged_in_order_and_it_leaves_well(program):
    program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    program.tell('{"cmd":"sequence","sequence":["stop","flush","shutdown"]}')
    said = [frame for frame in program.rest() if not isinstance(frame, HeartbeatFrame)]
    assert [type(frame).__name__ for frame in said] == ["AckFrame", "SummaryFrame", "AckFrame"]
    assert [frame.ack_command for frame in said if isinstance(frame, AckFrame)] == ["stop", "flush"]
    assert program.process.returncode == 0


def test_it_says_nothing_more_after_the_sequence_of_the_end_even_if_its_stdin_ends_too(program):
    program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    program.tell('{"cmd":"sequence","sequence":["stop","flush","shutdown"]}')
    program.process.stdin.close()
    said = [type(frame).__name__ for frame in program.rest() if not isinstance(frame, HeartbeatFrame)]
    assert said == ["AckFrame", "SummaryFrame", "AckFrame"]


def test_it_pauses_and_resumes(program):
    program.tell('{"cmd":"sequence","sequence":["pause","resume"]}')
    program.acknowledged("pause")
    program.acknowledged("resume")
    assert program.summary().count >= 0


def test_what_is_no_command_does_not_end_it(program):
    for line in (
        "garbage",
        "",
        "[1]",
        '{"cmd":"explode"}',
        '{"cmd":"sequence","sequence":["explode"]}',
        '{"cmd":"sequence"}',
        "[" * 50_000,
        "null",
    ):
        program.tell(line)
    assert program.summary().count >= 0


@pytest.mark.req("S0-33")
def test_it_leaves_when_nobody_speaks_to_it_any_more(program):
    program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    program.process.stdin.close()
    assert isinstance(program.rest()[-1], SummaryFrame | AckFrame), "and gives what it has"
    assert program.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_leaves_when_it_is_asked_to_by_signal(program, number):
    program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    program.process.send_signal(number)
    assert [frame for frame in program.rest() if isinstance(frame, SummaryFrame)]
    assert program.process.returncode == 0


def test_it_leaves_when_nobody_hears_it(program):
    with subprocess.Popen(
        program.process.args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"AGENT_HEARTBEAT_INTERVAL_S": "0.05"}
    ) as unheard:
        assert unheard.stdout is not None
        unheard.stdout.readline()
        unheard.stdout.close()
        try:
            unheard.wait(LEAVE_MAX_S)
        finally:
            unheard.kill()


# --- what ours do beyond that --------------------------------------------------------------------------------------------------


@pytest.fixture(params=["_template", "system_monitor"])
def ours(request) -> Iterator[Program]:
    with running(sys.executable, str(PACKAGES / request.param / "agent.py")) as found:
        yield found


@pytest.mark.req("S0-31")
@pytest.mark.req("S0-32")
def test_our_summaries_have_the_long_form(ours):
    ours.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    data = json.loads(ours.summary().text)
    assert list(data) == ["start_time", "end_time", "duration_s", "items", "count"]
    start, end = (datetime.fromisoformat(data[name]) for name in ("start_time", "end_time"))
    assert data["duration_s"] == pytest.approx((end - start).total_seconds(), abs=1e-9)
    assert data["count"] == len(data["items"])
    assert all(STAMP.fullmatch(data[name]) for name in ("start_time", "end_time"))


@pytest.mark.req("S0-38")
def test_the_document_names_every_frame_and_every_command():
    text = DOCUMENT.read_text()
    commands = (FlushCommand(), SequenceCommand(sequence=("stop", "flush", "shutdown")))
    wanted = [f'{{"type":"{kind}"' for kind in ("heartbeat", "summary", "ack", "error")]
    wanted += [f"`{protocol.line(command).decode().strip()}`" for command in commands] + [f"`{member}`" for member in MEMBERS]
    assert [words for words in wanted if words not in text] == []


@pytest.mark.req("S0-11")
def test_ours_have_three_threads(ours):
    ours.hear(lambda frame: isinstance(frame, HeartbeatFrame))
    ours.summary()
    assert "threads: MainThread, command-listener, worker-loop, summarizer" in ours.logged()
    assert len(list(Path(f"/proc/{ours.process.pid}/task").iterdir())) >= 4


@pytest.mark.req("S0-34")
def test_ours_are_the_template_with_another_upper_part():
    mark = "# --- below this line nothing needs to change"
    template, monitor = (path.read_text().partition(mark)[2] for path in (TEMPLATE, MONITOR))
    assert template == monitor != ""


def test_the_template_needs_nothing_but_the_standard_library():
    with running(sys.executable, "-I", "-S", str(TEMPLATE)) as program:
        program.summary()


# --- copies of the template, each with one function changed --------------------------------------------------------------------

NUMBERS = """
import itertools, runpy, sys, time
from pathlib import Path
code = Path({template!r}).read_text().replace("OBSERVE_INTERVAL_S = 1.0", "OBSERVE_INTERVAL_S = {interval}")
agent = dict(__name__="copy")
exec(compile(code, "copy", "exec"), agent)
numbers = itertools.count()
agent["observe"] = lambda: {{"n": next(numbers)}}
{more}
agent["Agent"]().run()
sys.stderr.write("made %d\\n" % next(numbers))
sys.stderr.flush()
import os; os._exit(0)
"""


def copy(interval: float, more: str = "") -> tuple[str, ...]:
    return (sys.executable, "-c", NUMBERS.format(template=str(TEMPLATE), interval=interval, more=more))


def numbers(frames: list[Frame]) -> list[int]:
    return [item["n"] for frame in frames if isinstance(frame, SummaryFrame) for item in frame.data.items]


@pytest.mark.req("S0-02")
@pytest.mark.req("S0-06")
@pytest.mark.req("S0-20")
def test_nothing_is_lost_and_nothing_is_there_twice_over_flushes_and_the_end():
    with running(*copy(0.001)) as program:
        for _ in range(5):
            program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
            program.summary()
        program.tell('{"cmd":"sequence","sequence":["stop","flush","shutdown"]}')
        program.frames += program.rest()
    found = numbers(program.frames)
    assert len(found) > 100
    program.logged()
    assert found == list(range(int(program.logged().removeprefix("made "))))
    summaries = [frame for frame in program.frames if isinstance(frame, SummaryFrame)]
    assert all(one.end == other.start for one, other in itertools.pairwise(summaries))
    assert sum(frame.count for frame in summaries) == len(found), "heartbeats are not counted"


@pytest.mark.req("S0-12")
def test_a_slow_summary_stalls_neither_gathering_nor_commands():
    slow = "agent['summarise'] = lambda items: (time.sleep(1.5), items)[1]"
    with running(*copy(0.01, slow)) as program:
        program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
        program.tell('{"cmd":"flush"}')
        program.tell('{"cmd":"sequence","sequence":["pause","resume"]}')
        program.acknowledged("resume", max_s=1.0)
        assert not [frame for frame in program.frames if isinstance(frame, SummaryFrame)], "the first summary is still being made"
        first = program.hear(lambda frame: isinstance(frame, SummaryFrame))
        second = program.summary()
    assert len(second.data.items) > 50, "what happened meanwhile"
    assert numbers([first, second]) == list(range(first.count + second.count))


def test_what_observing_raises_is_told_once_and_the_child_lives_on():
    with running(*copy(0.01, "def broken(): raise OSError('no probe')\nagent['observe'] = broken")) as program:
        error = program.hear(lambda frame: isinstance(frame, ErrorFrame))
        assert "no probe" in error.message
        program.summary()
        program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
        assert len([frame for frame in program.frames if isinstance(frame, ErrorFrame)]) == 1


def test_a_summary_that_cannot_be_sent_is_an_error_and_the_next_one_comes():
    with running(
        *copy(0.01, "agent['summarise'] = lambda items, turns=iter([[{'n': object()}], [{'n': 'x' * 3_000_000}], []]): next(turns)")
    ) as program:
        for because in ("not JSON serializable", "more than 2000000"):
            program.tell('{"cmd":"flush"}')
            assert because in program.hear(lambda frame: isinstance(frame, ErrorFrame)).message
            program.acknowledged("flush")
        assert program.summary().count == 0


def test_a_full_accumulator_counts_what_it_drops():
    with running(*copy(0.0001, "agent['ITEMS_MAX'] = 10")) as program:
        while json.loads(program.summary().text).get("dropped", 0) == 0:
            program.hear(lambda frame: isinstance(frame, HeartbeatFrame))
        assert max(frame.count for frame in program.frames if isinstance(frame, SummaryFrame)) == 10


# --- under a host --------------------------------------------------------------------------------------------------------------


@pytest.mark.req("S0-34")
@pytest.mark.parametrize("name", ["_template", "system_monitor"])
def test_ours_run_under_a_host_without_a_dead_letter(tmp_path, name):
    told = Told()
    spec = child("", heartbeat_interval_s=0.1).model_copy(update={"args": (str(PACKAGES / name / "agent.py"),)})
    with hosting(tmp_path, told) as host:
        pid = host.start(spec).result(WAIT_MAX_S).pid
        told.wait("c-1", "heartbeat", 3)
        assert host.flush("c-1").result(WAIT_MAX_S).latency_s < 5
        done = host.sequence("c-1", ("stop", "flush", "shutdown"), timeout_s=WAIT_MAX_S).result(WAIT_MAX_S)
        assert (done.acknowledged, done.left) == (("stop", "flush"), True)
        assert told.wait("c-1", "exited")[0].code == 0
        assert gone(pid)
    assert told.of("c-1", "dead_letter") == told.of("c-1", "error") == []


def test_the_monitor_tells_what_happened_in_its_window():
    code = MONITOR.read_text().replace("OBSERVE_INTERVAL_S = 5.0", "OBSERVE_INTERVAL_S = 0.1")
    with running(sys.executable, "-c", code) as program:
        program.hear(lambda frame: isinstance(frame, HeartbeatFrame) and frame.metrics["queue"] >= 3)
        items = {item["what"]: item for item in json.loads(program.summary().text)["items"]}
    assert items.keys() == {"cpu", "memory", "disks", "network", "processes"}
    assert 0 <= items["cpu"]["percent"]["mean"] <= items["cpu"]["percent"]["max"] <= 100
    assert 0 < items["memory"]["available_mb"] <= items["memory"]["total_mb"]
    assert any(disk["mount"] == "/" for disk in items["disks"]["full"])
    top = items["processes"]["by_memory"]
    assert top[0]["rss_mb"] >= top[-1]["rss_mb"] > 0
    assert items["processes"]["by_cpu"][0]["cpu_s"] > 0, "at least the monitor itself did something"
