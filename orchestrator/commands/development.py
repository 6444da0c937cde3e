"""`orchestrator dev`: the stack, its output as one readable stream, and Ctrl-C; law: one Ctrl-C ends all in order, a second one at once."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.text import Text

from orchestrator import settings as settings_module
from orchestrator.commands.printing import out
from orchestrator.dev import FLOWER_PORT, WORKERS_MAX, Plan, Stack
from schemas.settings import Settings

COLOURS = ("cyan", "green", "yellow", "blue", "magenta", "bright_cyan", "bright_green", "bright_yellow")
NAME_WIDTH = 9
TEND_S = 0.2
STOPPING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# Celery and flower write the date, the thousandth and the process into every line; the prefix says who, and the day is today.
_CELERY = re.compile(r"^\[\d{4}-\d\d-\d\d (?P<time>\d\d:\d\d:\d\d),\d+: (?P<level>\w+)/[^\]]*\] ?")
_FLOWER = re.compile(r"^\[(?P<level>[DIWE]) \d{6} (?P<time>\d\d:\d\d:\d\d) [^\]]*\] ?")
_LEVELS = {"W": "WARNING", "E": "ERROR", "I": "INFO", "D": "DEBUG"}
_STYLES = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "bold red"}

app = typer.Typer(add_completion=False)


@app.command()
def dev(
    *,
    workers: Annotated[int, typer.Option(help="Worker processes.", min=0, max=WORKERS_MAX)] = 1,
    include: Annotated[
        str, typer.Option(help="Modules with workflows, activities and tasks: one,two (besides ORCHESTRATOR_INCLUDE).")
    ] = "",
    queues: Annotated[str, typer.Option("-Q", "--queues", help="Queues to serve besides the default one: one,two.")] = "",
    concurrency: Annotated[int | None, typer.Option("-c", "--concurrency", help="Threads of each worker.", min=1)] = None,
    home: Annotated[Path | None, typer.Option(help="Folder of the embedded stack, instead of ORCHESTRATOR_HOME.")] = None,
    beat: Annotated[bool, typer.Option(help="Run beat.")] = True,
    flower: Annotated[bool, typer.Option(help="Run flower, if its port is free.")] = True,
    flower_port: Annotated[int, typer.Option(help="Port of flower on 127.0.0.1.", min=1, max=65535)] = FLOWER_PORT,
    api: Annotated[bool, typer.Option(help="Run the management API, if its port (ORCHESTRATOR_API_PORT) is free.")] = True,
) -> None:
    """The whole stack on this machine: broker, store, workers, beat, flower, management API. One Ctrl-C stops everything in order.

    What ORCHESTRATOR_DATABASE_URL and ORCHESTRATOR_BROKER_URL name is used; what they leave open is embedded.
    """
    settings = _settings(include, home)
    # The workers are agent hosts as well: whoever adds an agent finds somebody to start it.
    plan = Plan(
        workers=workers,
        queues=(*_words(queues), settings.fleet_queue),
        concurrency=concurrency,
        beat=beat,
        flower=flower,
        flower_port=flower_port,
        api=api,
    )
    printer = Printer()
    stack = Stack(settings, plan, tell=printer.tell)
    stack.start()
    with _stopping() as stop:
        try:
            printer.ready(stack)
            while not stop.wait(TEND_S):
                stack.tend()
        except BaseException:
            stack.kill()
            raise
        out.print(Text("stopping: workers finish what they have, the broker goes last (Ctrl-C again: at once)", style="bold"))
        try:
            stack.stop()
        except KeyboardInterrupt:
            stack.kill()
            raise


class Printer:
    """Lines of several processes as one stream."""

    def __init__(self) -> None:
        self._colours: dict[str, str] = {"dev": "bold"}

    def tell(self, who: str, line: str) -> None:
        """Print a line with the name of who said it."""
        colour = self._colours.setdefault(who, COLOURS[len(self._colours) % len(COLOURS)])
        found = _CELERY.match(line) or _FLOWER.match(line)
        style = ""
        if found:
            level = _LEVELS.get(found["level"], found["level"])
            style = _STYLES.get(level, "")
            line = f"{found['time']} {line[found.end() :]}"
        out.print(Text.assemble((f"{who:<{NAME_WIDTH}} ", colour), (line, style)))

    def ready(self, stack: Stack) -> None:
        """Say what there is and what to type next."""
        settings = stack.settings
        lines = [
            f"ready: {stack.plan.workers} worker(s) on {', '.join(stack.queues)}; store {stack.store}",
            "next, in another terminal in this folder:",
            "    orchestrator workflow start TYPE --arg JSON     orchestrator workflow list     orchestrator doctor",
        ]
        if not settings.include:
            lines.insert(1, "no workflows are known yet: start with --include your_module, or set ORCHESTRATOR_INCLUDE")
        running = {process.name for process in stack.processes}
        if "flower" in running:
            lines.append(f"flower: http://127.0.0.1:{stack.plan.flower_port}")
        if "api" in running:
            lines.append(f"management API: http://{settings.api_host}:{settings.api_port}, described at /docs")
        for line in lines:
            out.print(Text.assemble((f"{'dev':<{NAME_WIDTH}} ", "bold"), (line, "bold green")))


@contextmanager
def _stopping() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C (or SIGTERM, or the terminal's end) sets; the second one raises KeyboardInterrupt."""
    stop = threading.Event()

    def hear(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {which: signal.signal(which, hear) for which in STOPPING_SIGNALS}
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)


def _settings(include: str, home: Path | None) -> Settings:
    # Read anew rather than changed: the URLs of the embedded servers follow from the home.
    given = settings_module.current()
    return settings_module.read_anew(home=home, include=(*given.include, *_words(include)))


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
