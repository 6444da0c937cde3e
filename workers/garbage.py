"""How often Python looks for cyclic garbage in a worker; law: a process that is not ours alone, or whose operator has decided otherwise, is left as it is.

A turn makes and drops thousands of objects without cycles, and a collection walks modules and settings that never go away. So what is loaded
is kept out of collections (`gc.freeze`), and the youngest generation is larger: 10 % more workflows a second.
"""

from __future__ import annotations

import gc
import threading

from schemas.settings import Settings

YOUNG_MAX = 10_000
"""Objects made since the last collection; Python begins one at 700 or 2,000, which is several per claim."""


def calm(settings: Settings) -> bool:
    """Collect less often from now on, once what a worker needs is loaded; return whether that was ours to decide."""
    young, *older = gc.get_threshold()
    alone = threading.current_thread() is threading.main_thread()  # else a worker inside somebody's program, as in tests of users
    if not (settings.calm_collector and alone and gc.isenabled() and 0 < young < YOUNG_MAX):
        return False
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_MAX, *older)
    return True
