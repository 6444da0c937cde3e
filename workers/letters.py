"""Messages that cannot be processed become dead letters, on every broker; law: the letter is committed before the broker forgets the message.

A broker without dead letter queues drops what is rejected, so the row in the store is the letter. Whoever sets a message aside says why.
What is no message at all, bytes that somebody put into a list of Redis, comes here too: `tolerate_garbage` gives it the shape of one.
"""

from __future__ import annotations

import binascii
import logging
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import DatabaseUnavailable
from orchestrator.store import Store, control
from schemas.runs import DeadLetter

log = logging.getLogger("orchestrator.letters")

BODY_CHARACTERS_MAX = 64 * 1024  # of a message that is set aside; the rest is cut off, and said to be
HEADERS_MAX = 50
RETRY_S = 0.5
RETRY_MAX_S = 60.0  # how long a letter waits for the database; then the message stays unacknowledged, and comes again

Settle = Callable[[], object]


class Letters:
    """Sets messages aside, on a thread of its own."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="dead-letters")

    def set_aside(self, message: Any, reason: str, settle: Settle, *, code: str = "invalid_envelope") -> None:  # noqa: ANN401 - kombu's
        """Keep a message with the reason; `settle` is called when it is kept, and is to let the broker forget it. Any thread, returns at once."""
        log.warning("a message is set aside: %s", reason)
        letter = DeadLetter(self._clock.fresh_id(), "message", reason, 0.0, None, None, {"code": code, **document(message)})
        self._writer.submit(self._keep, letter, settle)

    def _keep(self, letter: DeadLetter, settle: Settle) -> None:
        deadline = self._clock.monotonic() + RETRY_MAX_S
        while True:
            try:
                with self._store.transaction(purpose="letters.add") as tx:
                    control.add_dead_letter(tx, letter)
            except DatabaseUnavailable as error:
                if self._clock.monotonic() >= deadline:
                    log.error("a dead letter could not be kept, its message will come again: %s", error.message)  # noqa: TRY400 - it says all
                    return
                self._clock.sleep(RETRY_S)
            else:
                break
        settle()


def document(message: Any) -> dict[str, Any]:  # noqa: ANN401 - kombu's
    """What is kept of a message."""
    body = message.body
    text = bytes(body).decode("utf-8", "replace") if isinstance(body, bytes | bytearray | memoryview) else str(body)
    headers = message.headers if isinstance(message.headers, Mapping) else {}
    kept = {str(key)[:200]: _plain(value) for key, value in list(headers.items())[:HEADERS_MAX] if value is not None}
    return {
        "queue": str((message.delivery_info or {}).get("routing_key") or ""),
        "content_type": str(message.content_type or ""),
        "headers": kept,
        "body": text[:BODY_CHARACTERS_MAX],
        **({"cut_off": True} if len(text) > BODY_CHARACTERS_MAX else {}),
    }


def tolerate_garbage() -> None:
    """Let kombu's transport for Redis hand on what is no message instead of failing; done once, where that transport is in use."""
    module: Any = sys.modules.get("kombu.transport.redis")
    if module is None or hasattr(module.loads, "plain"):
        return
    plain_loads, plain_read, plain_deliver = module.loads, module.Channel._brpop_read, module.Transport._deliver  # noqa: SLF001 - there is no other seam
    reading = threading.local()

    def loads(text: str, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - kombu's signature
        try:
            return plain_loads(text, *args, **options)
        except ValueError:
            if getattr(reading, "now", False):
                return text
            raise

    def read(self: Any, **options: Any) -> Any:  # noqa: ANN401 - as above
        reading.now = True
        try:
            return plain_read(self, **options)
        finally:
            reading.now = False

    def deliver(self: Any, message: Any, queue: str) -> Any:  # noqa: ANN401 - as above
        reading.now = False  # whoever is delivered to may read other things
        return plain_deliver(self, message if is_message(message) else garbage(message, queue), queue)

    loads.plain = plain_loads  # type: ignore[attr-defined] # marks it
    module.loads, module.Channel._brpop_read, module.Transport._deliver = loads, read, deliver  # noqa: SLF001 - as above


def is_message(raw: Any) -> bool:  # noqa: ANN401 - any JSON
    """Whether kombu can make a message of it."""
    if not isinstance(raw, dict) or not isinstance(raw.get("properties"), dict):
        return False
    if not isinstance(raw.get("headers"), dict | None):
        return False
    properties = raw["properties"]
    info = properties.get("delivery_info")
    if not (isinstance(info, dict) and "routing_key" in info and "exchange" in info and isinstance(properties.get("delivery_tag"), str)):
        return False
    if properties.get("body_encoding") != "base64":
        return properties.get("body_encoding") is None and isinstance(raw.get("body"), str)
    try:
        binascii.a2b_base64(raw.get("body") or "")
    except (TypeError, ValueError):
        return False
    return True


def garbage(raw: Any, queue: str) -> dict[str, Any]:  # noqa: ANN401 - any JSON
    """A message around what is none: with no task, it is an unknown one."""
    text = raw if isinstance(raw, str) else repr(raw)
    properties = {
        "delivery_tag": SYSTEM.fresh_id(),
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": 0,
    }
    return {"body": text, "content-type": "application/data", "content-encoding": "utf-8", "headers": {}, "properties": properties}


def _plain(value: object) -> Any:  # noqa: ANN401 - JSON
    return value if isinstance(value, str | int | float | bool) and len(str(value)) <= BODY_CHARACTERS_MAX else repr(value)[:1000]
