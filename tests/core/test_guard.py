"""Workflow code that a replay could not repeat is refused, with the place and the right call; everything else works inside a turn."""

# ruff: noqa: PLW0108, PLW1510, PTH107, PTH123, PTH208, SIM115, TRY301 - the calls that are refused must stand here as authors write them

from __future__ import annotations

import datetime as clockwork  # noqa: ICN001 - the wall clock is to be found under any name
import importlib
import io
import linecache
import logging
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
import timeit
import traceback
import uuid
import warnings
import zoneinfo
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from datetime import datetime as dt
from pathlib import Path
from time import monotonic as bound_before_install
from uuid import uuid4 as id_bound_before_install

import pytest

from orchestrator.core import guard
from orchestrator.errors import NonDeterministicCall


@pytest.fixture(autouse=True, scope="module")
def _installed():
    guard.install()
    guard.install()


@pytest.mark.parametrize(
    "call, name, remedy",
    [
        (lambda: open(__file__), "open", "activity"),
        (lambda: Path(__file__).read_text(), "open", "activity"),
        (lambda: os.listdir("."), "os.listdir", "activity"),
        (lambda: os.remove("does-not-exist"), "os.remove", "activity"),
        (lambda: os.system("true"), "os.system", "activity"),
        (lambda: subprocess.run(["true"]), "subprocess.Popen", "activity"),
        (socket.socket, "socket.__new__", "activity"),
        (lambda: socket.getaddrinfo("localhost", 80), "socket.getaddrinfo", "activity"),
        (lambda: threading.Thread(target=print).start(), "thread", "asyncio.create_task"),
        (lambda: ThreadPoolExecutor().submit(print), "thread", "asyncio.create_task"),
        (lambda: time.sleep(0), "time.sleep", "workflow.sleep"),
        (lambda: time.time(), "time.time()", "workflow.now"),
        (lambda: time.time_ns(), "time.time_ns()", "workflow.now"),
        (lambda: time.monotonic(), "time.monotonic()", "workflow.time"),
        (lambda: time.perf_counter(), "time.perf_counter()", "workflow.time"),
        (lambda: time.localtime(), "time.localtime()", "workflow.now"),
        (lambda: random.random(), "random.random()", "workflow.random"),
        (lambda: random.randint(1, 2), "random.randint()", "workflow.random"),
        (lambda: random.shuffle([1]), "random.shuffle()", "workflow.random"),
        (lambda: uuid.uuid1(), "uuid.uuid1()", "workflow.uuid4"),
        (lambda: uuid.uuid4(), "uuid.uuid4()", "workflow.uuid4"),
        (lambda: id_bound_before_install(), "os.urandom()", "workflow.random"),
        (lambda: os.urandom(1), "os.urandom()", "workflow.random"),
        (lambda: secrets.token_hex(), "secrets.token_hex()", "workflow.random"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_call_that_a_replay_cannot_repeat_is_refused_with_place_and_remedy(call, name, remedy):
    with guard.forbidden(), pytest.raises(NonDeterministicCall) as caught:
        call()
    assert name in caught.value.message.split(" inside ")[0]
    assert f"{__file__}:" in caught.value.message
    assert remedy in caught.value.message


def test_outside_of_turns_and_in_allowed_parts_everything_works():
    assert time.time() > 0
    with guard.forbidden():
        with guard.allowed():
            assert random.random() < 1
            open(__file__).close()
            with guard.forbidden(), pytest.raises(NonDeterministicCall):
                time.time()
            assert time.time() > 0
        assert guard.is_inside()
        with pytest.raises(NonDeterministicCall):
            time.time()
    assert not guard.is_inside()


def test_other_threads_are_not_in_the_turn():
    seen: list[float] = []
    go = threading.Event()

    def look():
        go.wait(10)
        seen.append(time.time())

    thread = threading.Thread(target=look)
    thread.start()
    with guard.forbidden():
        go.set()
        thread.join(10)
    assert len(seen) == 1


def test_pure_uses_of_the_same_modules_are_fine():
    with guard.forbidden():
        assert random.Random(7).random() == random.Random(7).random()
        assert uuid.uuid5(uuid.NAMESPACE_DNS, "x").version == 5
        assert time.localtime(0).tm_year in {1969, 1970}
        assert zoneinfo.ZoneInfo.no_cache("Europe/Berlin").key == "Europe/Berlin"


def test_logging_inside_a_turn_works_even_when_it_opens_and_rotates_its_file(tmp_path):
    from logging.handlers import RotatingFileHandler

    handler = RotatingFileHandler(tmp_path / "log", maxBytes=10, backupCount=1, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger = logging.getLogger("guarded")
    logger.propagate = False
    logger.addHandler(handler)
    with guard.forbidden():
        logger.warning("first line")
        logger.warning("second line")
    handler.close()
    logger.removeHandler(handler)
    assert "second line" in (tmp_path / "log").read_text()
    assert "first line" in (tmp_path / "log.1").read_text()


def test_imports_inside_a_turn_work_and_write_their_bytecode(tmp_path, monkeypatch):
    (tmp_path / "imported_in_a_turn.py").write_text("import time\nSTARTED = time.time()\nHERE = open(__file__).close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with guard.forbidden():
        module = importlib.import_module("imported_in_a_turn")
    assert module.STARTED > 0
    assert list(tmp_path.glob("__pycache__/*.pyc"))


def test_tracebacks_and_warnings_show_source_lines_inside_a_turn():
    linecache.clearcache()
    with guard.forbidden():
        try:
            raise LookupError("shown")
        except LookupError:
            text = traceback.format_exc()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.warn("shown", stacklevel=1)
            warnings.formatwarning("shown", UserWarning, __file__, 1)
    assert 'raise LookupError("shown")' in text
    assert caught


def test_the_blame_falls_on_the_author_and_not_on_the_library():
    with guard.forbidden(), pytest.raises(NonDeterministicCall, match=f"{__file__}:{line_here() + 1}"):
        Path(__file__).read_text()


def line_here() -> int:
    return sys._getframe(1).f_lineno


def test_a_forked_child_is_not_in_the_turn_of_its_parents_threads():
    guard._inside.add(-1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            os._exit(len(guard._inside))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        guard._inside.discard(-1)


def test_importing_the_guard_changes_nothing():
    check = "import time; before = time.time; import orchestrator.core.guard; assert time.time is before"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=Path(guard.__file__).parents[2])


def test_it_is_cheap():
    def nanoseconds(statement, **names):
        return min(timeit.repeat(statement, globals=names, number=20_000, repeat=5)) / 20_000 * 1e9

    # Generous, because machines differ; the aims are 300 and 100.
    assert nanoseconds("enter(); leave()", enter=guard.enter, leave=guard.leave) < 3_000
    assert nanoseconds("now()", now=time.time) < 2_000


# --- reading code --------------------------------------------------------------------------------------------------------


class workflow:
    now = staticmethod(lambda: dt(2026, 1, 1))


def by_class():
    return dt.now()


def by_module():
    return clockwork.datetime.now(clockwork.UTC)


def by_utcnow():
    return dt.utcnow()


def by_date():
    return [date.today() for _ in range(2)]


def by_datetime_today():
    return clockwork.datetime.today()


def by_nested():
    def inner():
        return lambda: dt.now()

    return inner


def by_local_import():
    import datetime as d  # noqa: ICN001 - as above
    from datetime import datetime as local

    return d.datetime.now(), local.now()


def by_reference():
    return sorted([1], key=dt.now)


def by_closure():
    own = dt

    def inner():
        return own.now()

    return inner


def by_bound_name():
    return bound_before_install()


def by_annotated_default():
    class Inner:
        at = dt.now()

    return Inner


def innocent(date=None, dt=None):
    return workflow.now(), date.today(), dt.now(), clockwork.datetime(2026, 1, 1), time.time, io.StringIO()


@pytest.mark.parametrize(
    "function, count",
    [
        (by_class, 1),
        (by_module, 1),
        (by_utcnow, 1),
        (by_date, 1),
        (by_datetime_today, 1),
        (by_nested, 1),
        (by_local_import, 2),
        (by_reference, 1),
        (by_closure(), 1),
        (by_bound_name, 1),
        (by_annotated_default, 1),
        (innocent, 0),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_wall_clock_is_found_under_any_name(function, count):
    found = guard.find_forbidden(function)
    assert len(found) == count, found
    for complaint in found:
        assert complaint.startswith(f"{__file__}:")
        assert "Use workflow." in complaint


class Parent:
    async def inherited(self):
        return dt.now()


class Workflow(Parent):
    async def run(self):
        return date.today()

    @property
    def age(self):
        return dt.utcnow()

    @staticmethod
    def static():
        return dt.now()

    @classmethod
    def of_class(cls):
        return dt.now()

    def fine(self):
        return workflow.now()


def test_all_methods_of_a_class_are_read():
    assert len(guard.find_forbidden(Workflow)) == 5


def test_the_message_names_file_line_call_and_remedy():
    (message,) = guard.find_forbidden(by_class)
    line = by_class.__code__.co_firstlineno + 1
    assert message == f"{__file__}:{line}: dt.now() reads the wall clock, which a replay cannot repeat. Use workflow.now()."
