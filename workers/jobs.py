"""One task on its way through the pool, on a thread or as a coroutine; law: its outcome is told once, by whoever settles it first.

A job is accepted, then ends by itself, by a time limit, or by being terminated. `TaskJob._settle` decides between them under races. A job
that is interrupted because the pool closes tells nothing: its message is unacked and will be delivered again.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from billiard.einfo import ExceptionInfo
from celery import Task
from celery.app.task import Context
from celery.exceptions import SoftTimeLimitExceeded, Terminated, WorkerLostError
from kombu.serialization import loads, prepare_accept_content

from orchestrator.clock import Clock
from workers.coroutines import Awaited, CoroutineLoop
from workers.threads import Interruption, Threads

Delivery = Callable[[], object]


class Pool(Protocol):
    """What a job needs of its pool."""

    app: Any
    clock: Clock
    threads: Threads
    loop: CoroutineLoop
    concluders: Any
    closing: bool
    hostname: str
    lend: Callable[[], Callable[[], None]] | None

    def deliver(self, call: Delivery) -> None: ...
    def settled(self, job: TaskJob) -> None: ...
    def awaited(self, task: Task[Any, Any]) -> Awaited | None: ...
    def tracer(self, task: Task[Any, Any]) -> Callable[..., Any]: ...


class TaskJob(ABC):
    """What both kinds share: Celery's callbacks, time limits, termination. This is also what `Request.terminate` holds."""
