"""Which attempts of Celery tasks this process has tried to start; law: the same attempt is tried once a process, however often its message comes.

The store says that an attempt is "ours" as soon as a start was committed, also one whose answer was lost. So a second message for it must
not be taken for the retry of the first.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from schemas.runs import ActivityKey

CLAIMS_MAX = 10_000  # the last so many are remembered; redelivered messages come sooner


class Claims:
    """A bounded memory of keys; safe between threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._keys: OrderedDict[ActivityKey, None] = OrderedDict()

    def first(self, key: ActivityKey) -> bool:
        """Remember an attempt; False if it is remembered already."""
        with self._lock:
            if key in self._keys:
                return False
            self._keys[key] = None
            while len(self._keys) > CLAIMS_MAX:
                self._keys.popitem(last=False)
            return True

    def forget(self, key: ActivityKey) -> None:
        """The try came to nothing: the next message may try again."""
        with self._lock:
            self._keys.pop(key, None)
