"""Agents of the end-to-end tests: they write down what they do, wait at gates, and die at crash points."""

from __future__ import annotations

import asyncio
import os
import time

from orchestrator import crashpoints
from orchestrator.agent import Agent, WorkRequest, info
from orchestrator.settings import current

if os.environ.get("DOOM"):
    crashpoints.die_at(os.environ["DOOM"])


def note(*words: object) -> None:
    with (current().home / "notes").open("a") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


class Noting(Agent):
    """`note` writes down that it was done, `gate` also waits for a file, `spin` keeps its thread busy, `soon` awaits."""

    type = "noting"
    capabilities = {"note": "1", "gate": "1", "spin": "1", "flaky": "1"}

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.tried = 0

    def on_start(self) -> None:
        """One that somebody has broken cannot start any more."""
        if (current().home / f"broken-{self.id}").exists():
            raise RuntimeError("somebody has broken it")

    async def execute_work(self, work: WorkRequest) -> object:
        about = info()
        assert about
        note("begin", about.request_id, os.getpid())
        if work.work_type == "gate":
            while not (current().home / "gates" / str(work.parameters["gate"])).exists():  # noqa: ASYNC110 - another process opens it
                await asyncio.sleep(0.02)
        if work.work_type == "spin":
            await asyncio.to_thread(time.sleep, work.parameters["seconds"])
        if work.work_type == "flaky":
            self.tried += 1
            if self.tried < work.parameters["times"]:
                raise RuntimeError(f"try {self.tried}")
        note("done", about.request_id, os.getpid())
        return {"by": self.id, **work.parameters}
