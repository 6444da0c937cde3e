"""An agent that gives back what it gets: to try a fleet out, and to test one."""

from __future__ import annotations

import asyncio
from typing import Any

from orchestrator.agent import Agent, WorkFailed, WorkRequest

SLOW_S = 5.0
"""How long `slow_echo` takes unless its parameter `delay_s` says otherwise."""


class Echo(Agent):
    """`echo` at once, `slow_echo` after a while, `fail` not at all."""

    type = "echo"
    capabilities = {"echo": "1.0", "slow_echo": "1.0", "fail": "1.0"}  # noqa: RUF012 - declared a ClassVar by Agent

    def __init__(self, *args: Any, **options: Any) -> None:  # noqa: ANN401 - Agent's own
        super().__init__(*args, **options)
        self._works = 0

    async def execute_work(self, work: WorkRequest) -> object:
        """Give the parameters back."""
        self._works += 1
        match work.work_type:
            case "slow_echo":
                await asyncio.sleep(float(work.parameters.get("delay_s", SLOW_S)))
            case "fail":
                raise WorkFailed(str(work.parameters.get("message", "told to fail")), details=work.parameters)
        return work.parameters

    def on_flush(self) -> object:
        """How many works there were since the last flush."""
        works, self._works = self._works, 0
        return {"works": works}
