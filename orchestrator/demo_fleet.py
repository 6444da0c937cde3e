"""The demo of the fleet: three kinds of agents at real work, paused, drained, restarted and killed; law: every number is counted, none is assumed.

What was done is counted from the rows of the works, and each digest is compared with one that this process computes by itself. A child has no
works: what it is sent are flushes, what it has done are the summaries that came of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import discovery
from orchestrator.clock import SYSTEM, Clock
from orchestrator.dev import Plan, Stack
from orchestrator.errors import FleetError, ServerUnavailable
from orchestrator.fleet import Fleet
from orchestrator.settings import load
from orchestrator.works import Works
from schemas.agents import Agent, AgentKind, AgentSpec, AgentStatus, Work
from schemas.messages import CommandName, CommandParams, WorkRequest

SECONDS = 60.0
SECONDS_MIN = 10.0
START_MAX_S = 120.0
DRAIN_MAX_S = 60.0  # for what is left when the time is over
ECHOES_PER_S = 40.0
HASHES_PER_S = 10.0
FLUSH_EVERY_S = 2.0
LOOK_S = 0.02
ACTOR = "demo"
ECHO, HASH, MONITOR = "echo", "file-hash", "system-monitor"


@dataclass(frozen=True)
class Row:
    """One type of agents: what it was sent and did, and how its death was taken."""

    type: str
    kind: str
    sent: int
    done: int
    wrong: int
    executed_twice: int
    lost: int
    detect_s: float | None
    recover_s: float | None


@dataclass(frozen=True)
class Result:
    """What the demo found out."""

    ok: bool
    problem: str  # why not ok
    rows: tuple[Row, ...]
    took_s: float


@dataclass(frozen=True)
class Progress:
    """Where the demo stands, for whoever shows it."""

    stage: str
    sent: int = 0
    done_s: float = 0.0
    seconds: float = SECONDS


Show = Callable[[Progress], None]


@dataclass
class Death:
    """A killed process: when, and when the fleet knew and had an agent again."""

    agent_id: str
    pid: int
    at: float
    detected_at: float | None = None
    recovered_at: float | None = None


@dataclass
class Sent:
    """What one type of agents was sent."""

    per_s: float
    request_of: Callable[[int], tuple[str, WorkRequest]]  # a number -> what the output must be, and the request
    wanted: dict[str, str] = field(default_factory=dict)  # request id -> what the output must be
    due_at: float = 0.0


def run(seconds: float = SECONDS, *, show: Show = lambda progress: None, clock: Clock = SYSTEM) -> Result:
    """Run the demo in a home of its own that is removed at the end. Raises ServerUnavailable if the stack does not start."""
    with _home() as home:
        settings = load({}, home=home, default_queue="demo", start_timeout_s=START_MAX_S / 2)
        show(Progress("starting broker, an agent host and beat", seconds=seconds))
        plan = Plan(workers=1, queues=(settings.fleet_queue,), concurrency=8)
        with Stack(settings, plan, clock=clock), Fleet(settings) as fleet, Works(settings) as works:
            return _Show(fleet, works, seconds, show, clock).to_the_end()


class _Show:
    """Sends the work, does the damage, and judges."""

    def __init__(self, fleet: Fleet, works: Works, seconds: float, show: Show, clock: Clock) -> None:
        self._fleet = fleet
        self._works = works
        self._seconds = seconds
        self._show = show
        self._clock = clock
        self._began = clock.monotonic()
        self._stage = ""
        self._files = sorted(path for path in Path(os.__file__).parent.glob("*.py") if path.is_file())
        self._sent = {ECHO: Sent(ECHOES_PER_S, self._echo), HASH: Sent(HASHES_PER_S, self._hash)}
        self._flushes = 0
        self._flush_at = 0.0
        self._deaths: dict[str, Death] = {}

    def to_the_end(self) -> Result:
        """Start, work, damage, wait for the rest, count."""
        ids = self._start()
        scenes: list[tuple[float, str, Callable[[], None]]] = [
            (0.0, "at work", lambda: None),
            (0.15, "echo-1 paused: echo-2 takes its work", lambda: self._tell("echo-1", CommandName.PAUSE)),
            (0.25, "echo-1 resumed", lambda: self._tell("echo-1", CommandName.RESUME)),
            (0.30, "file-hash stops: it drains, and its work waits", lambda: self._tell(HASH, CommandName.STOP)),
            (0.40, "file-hash starts", lambda: self._start_again(HASH)),
            (0.50, "echo-2 restarts: it drains first", lambda: self._tell("echo-2", CommandName.RESTART)),
            (0.60, "one of each is killed", lambda: self._kill("echo-1", HASH, MONITOR)),
        ]
        start = self._clock.monotonic()
        while (passed_s := self._clock.monotonic() - start) < self._seconds:
            if scenes and passed_s >= scenes[0][0] * self._seconds:
                _, self._stage, act = scenes.pop(0)
                act()
            self._send()
            self._watch()
            self._say(passed_s)
            self._clock.sleep(LOOK_S)
        self._stage = "waiting for the rest"
        done = self._finish()
        rows = tuple(self._row(type_, ids[type_], done.get(type_, [])) for type_ in (ECHO, MONITOR, HASH))
        problem = _problem(rows)
        return Result(not problem, problem, rows, self._clock.monotonic() - self._began)

    # --- agents ----------------------------------------------------------------------------------------------------------------

    def _start(self) -> dict[str, AgentKind]:
        shipped = {found.spec.id: found.spec for found in discovery.in_folders([_shipped()], skip=("_template",)).agents}
        specs = [
            AgentSpec(**{**shipped[ECHO].model_dump(), "id": "echo-1", "heartbeat_interval_s": 2.0}),
            AgentSpec(**{**shipped[ECHO].model_dump(), "id": "echo-2", "heartbeat_interval_s": 2.0}),
            shipped[HASH].model_copy(update={"heartbeat_interval_s": 2.0}),
            shipped[MONITOR].model_copy(update={"heartbeat_interval_s": 2.0, "flush_interval_s": 3600.0}),
        ]
        self._fleet.adopt(specs, discovery="demo")
        for spec in specs:
            self._tell(spec.id, CommandName.START)
        self._stage = "three types of agents start: native, child, http"
        self._await(lambda: all(self._fleet.get(spec.id).status is AgentStatus.RUNNING for spec in specs), START_MAX_S, specs)
        return {spec.type: spec.kind for spec in specs}

    def _await(self, happened: Callable[[], bool], longest_s: float, specs: list[AgentSpec]) -> None:
        deadline = self._clock.monotonic() + longest_s
        while not happened():
            if self._clock.monotonic() > deadline:
                states = ", ".join(f"{one.id} is {one.status} ({one.reason})" for one in (self._fleet.get(spec.id) for spec in specs))
                raise ServerUnavailable(f"the agents are not ready after {longest_s:.0f} s: {states}")
            self._say(0.0)
            self._clock.sleep(LOOK_S)

    def _tell(self, agent_id: str, command: CommandName) -> None:
        self._fleet.command(agent_id, command, CommandParams(), actor=ACTOR)

    def _start_again(self, agent_id: str) -> None:
        deadline = self._clock.monotonic() + START_MAX_S
        while self._fleet.get(agent_id).status is AgentStatus.STOPPING and self._clock.monotonic() < deadline:
            self._clock.sleep(LOOK_S)
        self._tell(agent_id, CommandName.START)

    def _kill(self, *agent_ids: str) -> None:
        for agent_id in agent_ids:
            agent = self._fleet.get(agent_id)
            if agent.pid:
                os.kill(agent.pid, signal.SIGKILL)
                self._deaths[agent.spec.type] = Death(agent_id, agent.pid, self._clock.now())

    def _watch(self) -> None:
        for death in self._deaths.values():
            if death.recovered_at is None:
                agent = self._fleet.get(death.agent_id)
                self._note(death, agent)

    def _note(self, death: Death, agent: Agent) -> None:
        now = self._clock.now()
        gone = agent.pid != death.pid or agent.status is not AgentStatus.RUNNING
        if gone and death.detected_at is None:
            death.detected_at = now
        if death.detected_at is not None and agent.status is AgentStatus.RUNNING and agent.pid not in {death.pid, None, 0}:
            death.recovered_at = now

    # --- work ------------------------------------------------------------------------------------------------------------------

    def _echo(self, number: int) -> tuple[str, WorkRequest]:
        return str(number), WorkRequest(work_type="echo", parameters={"text": str(number)})

    def _hash(self, number: int) -> tuple[str, WorkRequest]:
        path = self._files[number % len(self._files)]
        return hashlib.sha256(path.read_bytes()).hexdigest(), WorkRequest(work_type="sha256", parameters={"path": str(path)})

    def _send(self) -> None:
        now = self._clock.monotonic()
        for type_, sent in self._sent.items():
            sent.due_at = sent.due_at or now
            while sent.due_at <= now:
                wanted, request = sent.request_of(len(sent.wanted))
                request = request.model_copy(update={"attempts_max": 20})
                receipt = self._works.submit(request, agent_type=type_, actor=ACTOR)
                sent.wanted[receipt.work.request_id] = wanted
                sent.due_at += 1.0 / sent.per_s
        if now >= self._flush_at and self._fleet.get(MONITOR).status is AgentStatus.RUNNING:
            self._flush_at = now + FLUSH_EVERY_S
            with suppress(FleetError):
                self._tell(MONITOR, CommandName.FLUSH)
                self._flushes += 1

    def _finish(self) -> dict[str, list[Work]]:
        deadline = self._clock.monotonic() + DRAIN_MAX_S
        done: dict[str, list[Work]] = {}
        for type_, sent in self._sent.items():
            for request_id in sent.wanted:
                work = self._works.get(request_id)
                while work.result is None and self._clock.monotonic() < deadline:
                    self._watch()
                    self._say(self._seconds)
                    self._clock.sleep(LOOK_S)
                    work = self._works.get(request_id)
                done.setdefault(type_, []).append(work)
        while any(death.recovered_at is None for death in self._deaths.values()) and self._clock.monotonic() < deadline:
            self._watch()
            self._clock.sleep(LOOK_S)
        return done

    def _row(self, type_: str, kind: AgentKind, done: list[Work]) -> Row:
        death = self._deaths.get(type_)
        detect_s = death.detected_at - death.at if death and death.detected_at else None
        recover_s = death.recovered_at - death.at if death and death.recovered_at else None
        if type_ == MONITOR:
            summaries = len(self._fleet.summaries(MONITOR, limit=1000))
            return Row(type_, kind.value, self._flushes, summaries, 0, 0, max(0, self._flushes - summaries), detect_s, recover_s)
        wanted = self._sent[type_].wanted
        finished = [work for work in done if work.result is not None]
        wrong = sum(_output(type_, work) != wanted[work.request_id] for work in finished)
        twice = sum(work.executions > 1 for work in finished)
        return Row(type_, kind.value, len(wanted), len(finished), wrong, twice, len(wanted) - len(finished), detect_s, recover_s)

    def _say(self, passed_s: float) -> None:
        self._show(
            Progress(self._stage, sum(len(sent.wanted) for sent in self._sent.values()), min(passed_s, self._seconds), self._seconds)
        )


def _output(type_: str, work: Work) -> object:
    output = work.result.output if work.result is not None else None
    return output.get("digest" if type_ == HASH else "text") if isinstance(output, dict) else None


def _problem(rows: tuple[Row, ...]) -> str:
    for row in rows:
        if row.lost:
            return f"{row.lost} of what {row.type} was sent has no result"
        if row.wrong:
            return f"{row.wrong} results of {row.type} are wrong"
        if row.recover_s is None:
            return f"{row.type} did not come back after it was killed"
    return ""


def _shipped() -> Path:
    folder = discovery.shipped_folder()
    assert folder is not None, "the packages come with us"
    return folder


@contextmanager
def _home() -> Iterator[Path]:
    """A fresh home, gone afterwards; its path is short because a socket lives in it."""
    try:
        home = Path(tempfile.mkdtemp(prefix="orch-fleet-"))
    except OSError as error:
        raise ServerUnavailable(f"no temporary folder can be made: {error.strerror}. Set TMPDIR to one that is writable.") from error
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
