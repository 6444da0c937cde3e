"""What an agent remembers by itself of works it has done; law: bounded in number and in time, and a miss only costs a look into the store."""

from __future__ import annotations

import threading
from collections import OrderedDict

from orchestrator.clock import SYSTEM, Clock
from schemas.messages import WorkResult

CACHE_MAX = 1000
CACHE_TTL_S = 300.0


class IdempotencyCache:
    """Request id -> result: the `size_max` used last, each for `ttl_s` after it was stored. Safe for threads."""

    def __init__(self, size_max: int = CACHE_MAX, ttl_s: float = CACHE_TTL_S, *, clock: Clock = SYSTEM) -> None:
        self.size_max, self.ttl_s = size_max, ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._results: OrderedDict[str, tuple[float, WorkResult]] = OrderedDict()

    def get(self, request_id: str) -> WorkResult | None:
        """The result, if it is remembered; it then counts as used."""
        with self._lock:
            found = self._results.get(request_id)
            if found is None:
                return None
            if self._clock.monotonic() >= found[0] + self.ttl_s:
                del self._results[request_id]
                return None
            self._results.move_to_end(request_id)
            return found[1]

    def put(self, request_id: str, result: WorkResult) -> None:
        """Remember a result; what was used longest ago makes room."""
        with self._lock:
            self._results[request_id] = (self._clock.monotonic(), result)
            self._results.move_to_end(request_id)
            while len(self._results) > self.size_max:
                self._results.popitem(last=False)

    def __len__(self) -> int:
        return len(self._results)
