"""The guard of turns: refuses calls that a replay cannot repeat; the law it keeps: workflow code is pure.

Three nets. An audit hook sees files, sockets, processes, threads and sleeping, whoever calls them. Wrappers around the clocks and the
random functions look at their direct caller, so that logging inside a turn may read the time. What neither can see, because it is a
method of a C type or was bound before `install()`, is found in the code itself by `find_forbidden`.

It is a lint at run time, not a sandbox: it tells an honest author at the first test run what would break at the first replay.
"""

from __future__ import annotations

import dis
import functools
import importlib
import inspect
import os
import sys
import sysconfig
import threading
import zoneinfo
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType, TracebackType
from typing import Any, Final

from orchestrator.errors import NonDeterministicCall

FILES_KNOWN_MAX: Final = 20_000
FRAMES_MAX: Final = 1_000

_get_ident = threading.get_ident
_inside: set[int] = set()


def enter() -> None:
    """Mark the current thread as inside a turn."""
    _inside.add(_get_ident())


def leave() -> None:
    """End what `enter` began."""
    _inside.discard(_get_ident())


def is_inside() -> bool:
    """Whether the current thread is inside a turn, and not in an allowed part of it."""
    return _get_ident() in _inside


class _Switch:
    """A context manager that marks or unmarks the current thread and puts the former state back; may be nested."""

    __slots__ = ("_inside_before", "_on")

    def __init__(self, *, on: bool) -> None:
        self._on = on
        self._inside_before = False

    def __enter__(self) -> None:
        self._inside_before = is_inside()
        (enter if self._on else leave)()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        (enter if self._inside_before else leave)()


def forbidden() -> _Switch:
    """A part of the program that is a turn."""
    return _Switch(on=True)


def allowed() -> _Switch:
    """A part of a turn whose calls do not change what the workflow does, such as writing a log line."""
    return _Switch(on=False)


def install() -> None:
    """Set up the audit hook and the wrappers, once a process; they cost next to nothing outside of turns and cannot be removed."""
    with _installing:
        if _installed:
            return
        _installed.append(True)
        for rule, original in _ORIGINALS.values():
            setattr(importlib.import_module(rule.module), rule.name, _wrapped(rule, original))
        sys.addaudithook(_audit)
        if hasattr(os, "register_at_fork"):
            # A forked child has one thread, but the marks of all threads of its parent.
            os.register_at_fork(after_in_child=_inside.clear)


def find_forbidden(target: Callable[..., object] | type) -> list[str]:
    """What a function, or the methods of a class, would read that neither hook nor wrapper sees: "file:line: call. Remedy", sorted.

    Found are now, utcnow and today of datetime and date under whatever name, and clocks or random functions that were imported by name
    before `install()`. Nested functions are read too; called functions are not.
    """
    found: set[tuple[str, int, str]] = set()
    for function in _functions(target):
        closure = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
        names = {**vars(_BUILTINS), **function.__globals__, **{name: _content(cell) for name, cell in closure.items()}}
        found.update(_scan(function.__code__, names))
    return [f"{file}:{line}: {complaint}" for file, line, complaint in sorted(found)]


# --- rules ---------------------------------------------------------------------------------------------------------------

_CLOCK: Final = "Use workflow.now() or workflow.time()."
_RANDOM: Final = "Use workflow.random()."
_UUID: Final = "Use workflow.uuid4()."
_SLEEP: Final = "Use await workflow.sleep()."
_THREAD: Final = "Use asyncio.create_task() or asyncio.gather(), or an activity."
_ACTIVITY: Final = "Do it in an activity: await workflow.execute_activity(...)."


@dataclass(frozen=True, slots=True)
class Rule:
    """One wrapped function of a module."""

    module: str
    name: str
    remedy: str
    only_bare: bool = False  # with arguments the function is pure: time.localtime(stamp)
    for_all: bool = False  # refused to the standard library too when an author's call leads there: executor.submit()


_CLOCKS = (
    "time",
    "time_ns",
    "monotonic",
    "monotonic_ns",
    "perf_counter",
    "perf_counter_ns",
    "process_time",
    "process_time_ns",
    "thread_time",
)
_BARE_CLOCKS = ("localtime", "gmtime", "ctime", "asctime")
_CHANCES = (
    *("random", "uniform", "randint", "randrange", "choice", "choices", "shuffle", "sample", "getrandbits", "randbytes", "seed"),
    *("gauss", "normalvariate", "lognormvariate", "expovariate", "vonmisesvariate", "gammavariate", "betavariate", "paretovariate"),
    *("weibullvariate", "triangular"),
)
_SECRETS = ("token_bytes", "token_hex", "token_urlsafe", "choice", "randbelow", "randbits")
RULES: Final = (
    *(Rule("time", name, _CLOCK) for name in _CLOCKS),
    *(Rule("time", name, _CLOCK, only_bare=True) for name in _BARE_CLOCKS),
    *(Rule("random", name, _RANDOM) for name in _CHANCES),
    *(Rule("uuid", name, _UUID) for name in ("uuid1", "uuid4")),
    *(Rule("secrets", name, _RANDOM) for name in _SECRETS),
    Rule("os", "urandom", _RANDOM),
    Rule("time", "sleep", _SLEEP, for_all=True),  # audited since Python 3.13 only
    Rule("threading", "_start_new_thread", _THREAD, for_all=True),  # not audited in every version; later ones have another name
)

_EVENTS: Final = {
    "time.sleep": _SLEEP,
    "_thread.start_new_thread": _THREAD,
    "_thread.start_joinable_thread": _THREAD,
    "open": _ACTIVITY,
    "subprocess.Popen": _ACTIVITY,
    "sqlite3.connect": _ACTIVITY,
    "sqlite3.connect/handle": _ACTIVITY,
    "mmap.__new__": _ACTIVITY,
    "pty.spawn": _ACTIVITY,
    "webbrowser.open": _ACTIVITY,
    "signal.pthread_kill": _ACTIVITY,
}
_EVENT_FAMILIES: Final = (
    *("os.", "socket.", "shutil.", "tempfile.", "glob.", "pathlib.", "fcntl.", "syslog.", "urllib.", "http.client.", "ftplib.", "smtplib."),
    *("imaplib.", "poplib.", "nntplib.", "telnetlib.", "winreg.", "msvcrt."),
)

_ORIGINALS: Final = {
    id(original): (rule, original)
    for rule in RULES
    for original in [getattr(importlib.import_module(rule.module), rule.name, None)]
    if original is not None
}

# --- whose code is it ----------------------------------------------------------------------------------------------------

_BUILTINS: Final = importlib.import_module("builtins")
_GUESTS: Final = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_HOUSE: Final = Path(__file__).absolute().parents[2]


def _folders(*places: Path) -> tuple[str, ...]:
    """Prefixes of the file names of code objects, which keep symbolic links or not, as they were imported."""
    return tuple({f"{form}{os.sep}" for place in places for form in (place, place.resolve())})


_LIBRARY: Final = _folders(Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("platstdlib")), Path(os.__file__).parent)
_OURS: Final = _folders(*(_HOUSE / name for name in ("orchestrator", "schemas", "workers", "beat")))
# Importing reads files; a log handler may open, rotate and send; showing a traceback or a warning reads source lines.
_EXCUSES: Final = tuple(
    os.sep + name.replace("/", os.sep)
    for name in (
        *("importlib/", "logging/", "zipimport.py", "traceback.py", "linecache.py", "tokenize.py", "warnings.py", "inspect.py"),
        *("pdb.py", "bdb.py", "weakref.py"),
    )
)
_TRANSPARENT: Final = tuple(os.sep + name for name in ("uuid.py", "random.py", "secrets.py"))

_LIBRARY_CODE, _OUR_CODE, _USER_CODE, _EXCUSED_CODE, _TRANSPARENT_CODE = range(5)
_known_files: dict[str, int] = {}


def _owner(frame: FrameType) -> int:
    """Whose code a frame runs; remembered by file."""
    file = frame.f_code.co_filename
    owner = _known_files.get(file)
    if owner is None:
        if len(_known_files) >= FILES_KNOWN_MAX:
            _known_files.clear()
        owner = _known_files[file] = _judged(file)
    return owner


def _judged(file: str) -> int:
    if file.startswith("<frozen "):
        return _EXCUSED_CODE if "importlib" in file or "zipimport" in file else _LIBRARY_CODE
    if file.startswith(_OURS):
        return _OUR_CODE
    if not file.startswith(_LIBRARY) or any(place in file for place in _GUESTS):
        return _USER_CODE
    if any(excuse in file for excuse in _EXCUSES):
        return _EXCUSED_CODE
    return _TRANSPARENT_CODE if file.endswith(_TRANSPARENT) else _LIBRARY_CODE


def _culprit(frame: FrameType | None) -> FrameType | None:
    """The author's frame that is to blame; None if the call is excused, or comes from our own code and not from an author's."""
    blamed: FrameType | None = None
    for _ in range(FRAMES_MAX):
        if frame is None:
            return blamed
        owner = _owner(frame)
        if owner == _EXCUSED_CODE:
            return None
        if owner == _OUR_CODE:  # what lies further out is the engine that takes the turn
            return blamed
        if owner == _USER_CODE and blamed is None:
            blamed = frame
        frame = frame.f_back
    return blamed


def _complaint(call: str, frame: FrameType, remedy: str) -> NonDeterministicCall:
    place = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return NonDeterministicCall(f"{call} inside a workflow turn at {place}: a replay could not repeat it. {remedy}")


# --- the nets ------------------------------------------------------------------------------------------------------------

_installing = threading.Lock()
_installed: list[bool] = []


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _inside or _get_ident() not in _inside:
        return
    remedy = _EVENTS.get(event) or (_ACTIVITY if event.startswith(_EVENT_FAMILIES) else None)
    if remedy is None or (event == "open" and _is_zone(args[0])):
        return
    frame = _culprit(sys._getframe(1))  # noqa: SLF001 - the documented way to the caller
    if frame is not None:
        call = f"open({args[0]!r})" if event == "open" else event
        raise _complaint(call, frame, remedy)


def _is_zone(path: object) -> bool:
    """Whether a file is time zone data: constant for our purposes, and ZoneInfo opens it on first use."""
    return isinstance(path, str) and (path.startswith(tuple(zoneinfo.TZPATH)) or f"{os.sep}tzdata{os.sep}zoneinfo{os.sep}" in path)


def _wrapped(rule: Rule, original: Callable[..., Any]) -> Callable[..., Any]:
    """The function of the standard library, with a look at the caller inside turns."""
    if rule.name in _CLOCKS:

        @functools.wraps(original)
        def clock() -> Any:  # noqa: ANN401 - int or float, as the original
            if _inside and _get_ident() in _inside:
                _check(rule, sys._getframe(1))  # noqa: SLF001 - as above
            return original()

        return clock

    @functools.wraps(original)
    def guarded(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - whatever the original takes and gives
        if _inside and _get_ident() in _inside and not (rule.only_bare and args):
            _check(rule, sys._getframe(1))  # noqa: SLF001 - as above
        return original(*args, **kwargs)

    return guarded


def _check(rule: Rule, frame: FrameType | None) -> None:
    # A uuid4 that was imported by name before install() still asks os.urandom: look through uuid.py at who asked it.
    while frame is not None and _owner(frame) == _TRANSPARENT_CODE:
        frame = frame.f_back
    if frame is None or (_owner(frame) != _USER_CODE and not rule.for_all):
        return
    culprit = _culprit(frame)
    if culprit is not None:
        raise _complaint(f"{rule.module}.{rule.name}()", culprit, rule.remedy)


# --- reading code --------------------------------------------------------------------------------------------------------

_UNKNOWN: Final = object()
_NAMED_LOADS: Final = frozenset(
    {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_GLOBALS", "LOAD_FROM_DICT_OR_DEREF"}
)
_ATTRIBUTE_LOADS: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})
_SILENT: Final = frozenset({"CACHE", "EXTENDED_ARG", "NOP", "PRECALL", "PUSH_NULL", "RESUME"})


def _functions(target: Any) -> Iterator[FunctionType]:  # noqa: ANN401 - functions, methods, properties and classes alike
    """The Python functions of a callable or class, the inherited ones of authors' classes included."""
    if isinstance(target, type):
        for parent in target.__mro__:
            module = sys.modules.get(parent.__module__)
            if parent is not object and _judged(getattr(module, "__file__", None) or "<unknown>") == _USER_CODE:
                for member in vars(parent).values():
                    if not isinstance(member, type):
                        yield from _functions(member)
        return
    if isinstance(target, property):
        target = [part for part in (target.fget, target.fset, target.fdel) if part is not None]
    elif isinstance(target, (functools.cached_property, functools.partial)):
        target = [target.func]
    elif isinstance(target, (staticmethod, classmethod)):
        target = [target.__func__]
    if isinstance(target, list):
        for part in target:
            yield from _functions(part)
        return
    function = inspect.unwrap(target) if callable(target) else target
    function = getattr(function, "__func__", function)
    if isinstance(function, FunctionType):
        yield function


def _scan(code: CodeType, names: dict[str, object]) -> Iterator[tuple[str, int, str]]:
    """Follow name.attribute chains through the code and the codes within it."""
    local: dict[str, object] = {}
    value: object = _UNKNOWN
    module: object = _UNKNOWN
    chain = ""
    for step in dis.get_instructions(code):
        line = (step.positions.lineno if step.positions else None) or code.co_firstlineno
        if step.opname in _SILENT:
            continue
        if step.opname == "IMPORT_NAME":
            module = value = sys.modules.get(step.argval, _UNKNOWN)
        elif step.opname == "IMPORT_FROM":
            value = _attribute(module, step.argval)
        elif step.opname.startswith("STORE_") and isinstance(step.argval, str):
            local[step.argval] = value
            value = _UNKNOWN
        elif step.opname == "STORE_FAST_LOAD_FAST":
            local[step.argval[0]] = value
            chain = step.argval[1]
            value = local.get(chain, _UNKNOWN)
        elif step.opname in _NAMED_LOADS or step.opname.startswith("LOAD_FAST"):
            chain = step.argval if isinstance(step.argval, str) else str(step.argval[-1])
            value = local.get(chain, _UNKNOWN) if chain in local or "FAST" in step.opname else names.get(chain, _UNKNOWN)
            rule = _ORIGINALS.get(id(value))
            if rule is not None:
                yield (
                    code.co_filename,
                    line,
                    f"{chain}() is {rule[0].module}.{rule[0].name}, which a replay cannot repeat. {rule[0].remedy}",
                )
        elif step.opname in _ATTRIBUTE_LOADS and value is not _UNKNOWN:
            chain += f".{step.argval}"
            if _reads_clock(value, step.argval):
                yield code.co_filename, line, f"{chain}() reads the wall clock, which a replay cannot repeat. Use workflow.now()."
            value = _attribute(value, step.argval)
        else:
            value = _UNKNOWN
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _scan(constant, {**names, **{name: known for name, known in local.items() if known is not _UNKNOWN}})


def _reads_clock(owner: object, name: str) -> bool:
    if not isinstance(owner, type):
        return False
    return (issubclass(owner, datetime) and name in {"now", "utcnow", "today"}) or (issubclass(owner, date) and name == "today")


def _attribute(owner: object, name: str) -> object:
    """An attribute of a module or class, without running any code for it."""
    if isinstance(owner, (ModuleType, type)):
        return inspect.getattr_static(owner, name, _UNKNOWN)
    return _UNKNOWN


def _content(cell: Any) -> object:  # noqa: ANN401 - types.CellType has no typed contents
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return _UNKNOWN
