"""Envelopes that arrive on the queues of agents; law: what fits becomes a work like any other, once; what does not becomes a dead letter.

An envelope is a Celery message for the task `orchestrator.agent_work` with the one argument `envelope`. It is looked at beside the pool, so
that it is accepted at once however busy the agent is, and acknowledged when the work is committed: that is when it counts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from celery import Celery
from kombu.exceptions import ContentDisallowed, DecodeError
from pydantic import ValidationError

from orchestrator.celery import orchestrator_of
from orchestrator.errors import AgentNotFound, DatabaseUnavailable, FleetError
from orchestrator.works import Works, agent_queue, type_queue
from schemas.messages import ErrorCode, MessageEnvelope, WorkRequest
from workers.letters import Letters

log = logging.getLogger("orchestrator.intake")

TASK = "orchestrator.agent_work"
ENVELOPE = "envelope"  # its argument
AROUND_MAX = 4096  # bytes of a message around its payload
REASONS_MAX = 3  # mistakes of one envelope that are told
LATER_S = 1.0  # until an envelope is looked at again whose agent takes nothing now

LATER = frozenset({ErrorCode.AGENT_PAUSED, ErrorCode.AGENT_STOPPING, ErrorCode.AGENT_UNAVAILABLE, ErrorCode.NO_CAPACITY})
"""Refusals that pass."""


class Unfit(Exception):
    """An envelope that will never be a work; the message names the field."""

    def __init__(self, reason: str, code: ErrorCode = ErrorCode.INVALID_ENVELOPE) -> None:
        super().__init__(reason)
        self.code = code


class Intake:
    """Takes envelopes of one worker."""

    def __init__(self, app: Celery, works: Works, letters: Letters) -> None:
        self._works, self._letters = works, letters
        self._limit = orchestrator_of(app).settings.payload_bytes_max + AROUND_MAX
        self._clock = orchestrator_of(app).clock
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="agent-intake")

    def strategy(self, consumer: Any) -> Callable[..., None]:  # noqa: ANN401 - a FleetConsumer
        """What Celery calls with each message, on the hub's thread."""

        def take(message: Any, _body: Any, ack: Settle, reject: Reject, *_: Any, **__: Any) -> None:  # noqa: ANN401 - Celery's signature
            errors = consumer.connection_errors
            # These may be called on any thread: they lead to the hub's.
            drop, back = partial(reject, log, errors, False), partial(reject, log, errors, True)
            again = partial(consumer.call_soon, partial(consumer.timer.call_after, LATER_S, back))
            self._reader.submit(self._take, message, partial(ack, log, errors), drop, again)

        return take

    def _take(self, message: Any, ack: Settle, drop: Settle, again: Settle) -> None:  # noqa: ANN401 - kombu's
        try:
            try:
                self.submit(self._envelope_of(message), queue=str((message.delivery_info or {}).get("routing_key") or ""))
            except Unfit as error:
                self._letters.set_aside(message, str(error), drop, code=error.code.value)
            except FleetError as error:
                if error.code in LATER:
                    log.info("an envelope waits: %s", error.message)
                    again()
                else:
                    self._letters.set_aside(message, error.message, drop, code=error.code.value)
            except DatabaseUnavailable as error:
                log.warning("an envelope waits for the database: %s", error.message)
                again()
            else:
                ack()
        except Exception as error:
            log.exception("an envelope could not be taken")
            self._letters.set_aside(message, f"it could not be taken: {error!r}", drop)

    def submit(self, document: Any, *, queue: str) -> str:  # noqa: ANN401 - any JSON
        """Validate an envelope that came by a queue and submit its work; the request id. Raises Unfit, FleetError, DatabaseUnavailable."""
        envelope = checked(document, queue=queue)
        expires_in_s = None if envelope.expires_at is None else envelope.expires_at.timestamp() - self._clock.now()
        if expires_in_s is not None and expires_in_s <= 0:
            raise Unfit("expires_at: that time has passed")
        request = envelope.payload
        assert isinstance(request, WorkRequest), "checked above"
        try:
            receipt = self._works.submit(
                request,
                agent_id=envelope.to_agent or "",
                agent_type=envelope.agent_type,
                request_id=envelope.request_id,
                trace_id=envelope.trace_id,
                actor=envelope.from_agent,
                priority=envelope.priority,
                expires_in_s=expires_in_s,
            )
        except AgentNotFound as error:
            raise Unfit(f"to_agent: {error.message}") from error
        except FleetError as error:
            if error.code is ErrorCode.INVALID_REQUEST:
                raise Unfit(f"agent_type: {error.message}") from error
            raise
        return receipt.work.request_id

    def _envelope_of(self, message: Any) -> Any:  # noqa: ANN401 - kombu's, any JSON
        size = len(message.body or b"")
        if size > self._limit:
            raise Unfit(f"the message has {size:,} bytes; at most {self._limit:,} are taken", ErrorCode.PAYLOAD_TOO_LARGE)
        try:
            payload = message.payload
        except ContentDisallowed as error:
            raise Unfit(f"content_type: {message.content_type!r} is not accepted, only JSON is") from error
        except (DecodeError, ValueError, LookupError) as error:
            raise Unfit(f"the body cannot be read: {error}") from error
        arguments = payload[1] if isinstance(payload, list | tuple) and len(payload) > 1 else None
        if not isinstance(arguments, dict) or set(arguments) != {ENVELOPE} or payload[0]:
            raise Unfit(f"{ENVELOPE}: the message must have this one argument, by its name")
        return arguments[ENVELOPE]


Settle = Callable[..., object]
Reject = Callable[..., object]


def register_task(app: Celery) -> None:
    """Make the task known to the application, so that Celery looks for its strategy."""
    if TASK in app.tasks:
        return

    @app.task(name=TASK, shared=False, ignore_result=True)
    def agent_work(envelope: Any) -> str:  # noqa: ANN401 - any JSON
        ours = orchestrator_of(app)
        with Works(ours.settings, store=ours.store, bell=ours.broker, clock=ours.clock) as works:
            return Intake(app, works, Letters(ours.store, ours.clock)).submit(envelope, queue="")


def checked(document: Any, *, queue: str = "") -> MessageEnvelope:  # noqa: ANN401 - any JSON
    """The envelope, if it is one and asks for work of an agent of this queue; raises Unfit, which names each wrong field."""
    try:
        envelope = MessageEnvelope.model_validate(document)
    except ValidationError as error:
        reasons = [f"{'.'.join(map(str, found['loc'])) or ENVELOPE}: {found['msg']}" for found in error.errors()[:REASONS_MAX]]
        raise Unfit("; ".join(reasons)) from error
    if not isinstance(envelope.payload, WorkRequest):
        raise Unfit(f"payload.type: agents take work_request here, not {envelope.payload.type}")
    if not (envelope.to_agent or envelope.agent_type):
        raise Unfit("agent_type: it says neither an agent nor a type")
    fitting = {agent_queue(envelope.to_agent or ""), type_queue(envelope.agent_type)}
    if queue and queue not in fitting:
        field = "to_agent" if queue.startswith("agent.") else "agent_type"
        raise Unfit(f"{field}: an envelope for this one does not belong into the queue {queue!r}")
    return envelope
