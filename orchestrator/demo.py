"""The demo: a real workflow on real files, one of its two workers killed, the broker wiped; law: every number is counted, none is assumed.

What ran is counted from a side log that each execution appends to, not from the history; what the dead worker had in flight is read from the
store while that worker stands frozen, an instant before its death; the report is compared with one that this process computes by itself.
"""

from __future__ import annotations

import ast
import os
import shutil
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from orchestrator import demo_workflows
from orchestrator.client import Client, WorkflowHandle
from orchestrator.clock import SYSTEM, Clock
from orchestrator.demo_workflows import FileFacts, Report, Survey, SurveyWorkflow, facts_of, report_of, source_files
from orchestrator.dev import Plan, Process, Stack
from orchestrator.errors import InvalidArgument, ServerUnavailable
from orchestrator.settings import load
from orchestrator.store import workers
from schemas.runs import ActivityState, Status

WORKERS = 2
CONCURRENCY = 4
RUN_MAX_S = 300.0
LOOK_S = 0.02  # how often the run is looked at
SLICE_S = 0.05  # how long this process computes between two looks
PACED_S = 4.0  # a small folder takes at least about this long on both workers, so that there is somebody to kill
PACE_MAX_S = 0.5


@dataclass(frozen=True)
class Result:
    """What the demo found out.

    Both times run from the kill: `recovered_s` until the first activity that was in flight in the dead worker was done by another one,
    `caught_up_s` until the last of them was.
    """

    ok: bool
    problem: str  # why not ok
    workflow_id: str
    files: int
    lost: int
    activities_run: int
    executed_twice: int
    in_flight: int
    recovered_s: float | None
    caught_up_s: float | None
    took_s: float
    report: Report | None


@dataclass(frozen=True)
class Progress:
    """Where the demo stands, for whoever shows it."""

    stage: str
    done: int = 0
    files: int = 0


Show = Callable[[Progress], None]


@dataclass
class Trace:
    """The side log, read as it grows."""

    path: Path
    begun: Counter[str] = field(default_factory=Counter)
    ended: dict[str, float] = field(default_factory=dict)  # path -> when it was done last
    pids: dict[str, int] = field(default_factory=dict)  # path -> who did it last
    _offset: int = 0

    def read(self) -> None:
        """Take in what was appended since the last time."""
        if not self.path.exists():
            return
        with self.path.open("rb") as log:
            log.seek(self._offset)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                at, pid, what, path = line.decode().rstrip("\n").split("\t", 3)
                self._take(float(at), int(pid), what, ast.literal_eval(path))

    def _take(self, at: float, pid: int, what: str, path: str) -> None:
        if what == "begin":
            self.begun[path] += 1
        else:
            self.ended[path], self.pids[path] = at, pid


@dataclass(frozen=True)
class Death:
    """The killed worker: when, who, and the files that it had in flight."""

    at: float
    worker: str
    pid: int
    in_flight: frozenset[str]


def standard_library() -> Path:
    """The default folder: the library of the running Python."""
    return Path(sysconfig.get_path("stdlib")).absolute()


def files_of(folder: Path) -> list[str]:
    """What the demo will survey; raises InvalidArgument if it is nothing."""
    if not folder.exists():
        raise InvalidArgument(f"{folder} does not exist. Name a folder with Python files.")
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is not a folder. Name a folder with Python files.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise InvalidArgument(f"{folder} may not be read. Name a folder with Python files that you may read.")
    files = source_files(folder)
    if not files:
        raise InvalidArgument(f"{folder} has no Python files. Name a folder that has some.")
    return files


def run(folder: Path, files: list[str], *, show: Show = lambda progress: None, clock: Clock = SYSTEM) -> Result:
    """Run the demo on the `files_of` a folder, in a home of its own that is removed at the end.

    Raises ServerUnavailable if the stack does not start.
    """
    with _home() as home:
        settings = load({}, home=home, include=(demo_workflows.__name__,), default_queue="demo")
        began = clock.monotonic()
        show(Progress("starting broker, two workers and beat", files=len(files)))
        with Stack(settings, Plan(workers=WORKERS, concurrency=CONCURRENCY), clock=clock) as stack, Client(settings=settings) as client:
            pace_s = min(PACE_MAX_S, PACED_S * WORKERS * CONCURRENCY / len(files))
            survey = Survey(str(folder), str(home / "executions.log"), pace_s if pace_s >= SLICE_S else 0.0)
            handle = client.start_workflow(SurveyWorkflow, survey, id=f"survey-of-{folder.name}"[:200] or "survey")
            return _Watch(stack, handle, survey, files, show=show, clock=clock, began=began).to_the_end()


class _Watch:
    """Looks at the run, does the damage, computes the report beside it, and judges."""

    def __init__(
        self, stack: Stack, handle: WorkflowHandle[Report], survey: Survey, files: list[str], *, show: Show, clock: Clock, began: float
    ) -> None:
        self._stack = stack
        self._handle = handle
        self._folder = Path(survey.folder)
        self._files = files
        self._show = show
        self._clock = clock
        self._began = began
        self._trace = Trace(Path(survey.log))
        self._death: Death | None = None
        self._wiped = False
        self._own: list[FileFacts] = []
        self._todo = iter(files)

    def to_the_end(self) -> Result:
        """Watch until the run is closed and our own report is ready."""
        deadline = self._clock.monotonic() + RUN_MAX_S
        while self._clock.monotonic() < deadline:
            self._trace.read()
            self._do_damage()
            self._show(Progress(self._stage(), len(self._trace.ended), len(self._files)))
            computing = self._death is not None and self._compute()
            if len(self._trace.ended) >= len(self._files) and self._closed():
                break
            if not computing:
                self._clock.sleep(LOOK_S)
        while self._compute():
            pass
        return self._judge()

    def _stage(self) -> str:
        if self._death is None:
            return "two workers"
        if len(self._trace.ended) >= len(self._files):
            return "durable pause, then the report"
        if not self._redone():
            return f"{self._death.worker} killed with {len(self._death.in_flight)} activities in flight"
        return "broker wiped, one worker goes on" if self._wiped else "one worker goes on"

    def _do_damage(self) -> None:
        done = len(self._trace.ended)
        if self._death is None and done >= len(self._files) // 3 and done < len(self._files):
            self._kill_somebody()
        elif self._death is not None and not self._wiped and done * 3 >= len(self._files) * 2:
            assert self._stack.broker is not None, "the demo's broker is its own"
            self._stack.broker.flushall()
            self._wiped = True

    def _kill_somebody(self) -> None:
        """Freeze a worker, see what it holds, and kill it if that is anything: a frozen process cannot finish while we look."""
        for number in range(1, WORKERS + 1):
            victim = self._stack.worker(number)
            victim.freeze()
            in_flight = self._held_by(victim)
            if in_flight:
                at = self._clock.now()
                victim.kill()
                self._death = Death(at, victim.name, victim.pid or 0, in_flight)
                return
            victim.thaw()

    def _held_by(self, process: Process) -> frozenset[str]:
        with self._stack.store.transaction(readonly=True) as tx:
            ids = {row.identity.worker_id for row in workers.list_workers(tx) if row.identity.pid == process.pid}
        pending = self._handle.pending_activities()
        mine = [one for one in pending if one.worker in ids and one.state is ActivityState.STARTED and len(one.scheduled.args) == 2]
        return frozenset(str(one.scheduled.args[1]) for one in mine)

    def _redone(self) -> list[float]:
        """When the files that were in flight in the dead worker were done by another one."""
        death, trace = self._death, self._trace
        if death is None:
            return []
        return [trace.ended[path] for path in death.in_flight if path in trace.ended and trace.pids[path] != death.pid]

    def _compute(self) -> bool:
        """Survey some files ourselves; False when none is left."""
        until = self._clock.monotonic() + SLICE_S
        for path in self._todo:
            self._own.append(facts_of(self._folder, path))
            if self._clock.monotonic() > until:
                return True
        return False

    def _closed(self) -> bool:
        return self._handle.describe().status is not Status.RUNNING

    def _judge(self) -> Result:
        self._trace.read()
        took_s = self._clock.monotonic() - self._began
        status = self._handle.describe().status
        report = self._handle.result(timeout=1) if status is Status.COMPLETED else None
        own = report_of(self._own)
        lost = len(set(own.paths) - set(report.paths if report else self._trace.ended))
        redone = self._redone()
        death = self._death
        recovered = death is not None and len(redone) == len(death.in_flight)
        problem = _problem(status, same=report == own, killed=death is not None, wiped=self._wiped, recovered=recovered)
        return Result(
            ok=not problem and not lost,
            problem=problem,
            workflow_id=self._handle.id,
            files=len(self._files),
            lost=lost,
            activities_run=self._trace.begun.total(),
            executed_twice=sum(count > 1 for count in self._trace.begun.values()),
            in_flight=len(death.in_flight) if death else 0,
            recovered_s=min(redone) - death.at if death and redone else None,
            caught_up_s=max(redone) - death.at if death and recovered else None,
            took_s=took_s,
            report=report,
        )


def _problem(status: Status, *, same: bool, killed: bool, wiped: bool, recovered: bool) -> str:
    if status is not Status.COMPLETED:
        return f"the workflow is {str(status).replace('_', ' ')} and has no report"
    if not same:
        return "the report differs from the one computed directly"
    if not (killed and wiped):
        return "the run ended before the damage was done, so nothing was shown"
    return "" if recovered else "an activity of the dead worker was not run again"


@contextmanager
def _home() -> Iterator[Path]:
    """A fresh home, gone afterwards; its path is short because a socket lives in it."""
    try:
        home = Path(tempfile.mkdtemp(prefix="orch-demo-"))
    except OSError as error:
        raise ServerUnavailable(f"no temporary folder can be made: {error.strerror}. Set TMPDIR to one that is writable.") from error
    try:
        yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)
