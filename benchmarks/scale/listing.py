"""Many runs in the store: what a page of a list costs, whichever page and whatever is asked for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

from benchmarks.arena import Arena
from benchmarks.scale.figures import Curve, Figure, Findings, Plot, Probe
from benchmarks.scale.site import MIB, opened
from orchestrator.store import Store, listing
from schemas.runs import RunFilter, Status

BATCH = 50_000
REPEATS = 15
SHARES = (0.01, 0.1, 1.0)
PLOTTED = ("first page of 100", "failed: one in a thousand")
PAGE_MS_MAX = 50.0
LONG_AGO = 1_750_000_000.0
APART_S = 2.0

# One of 997 failed, one of 100,003 was terminated, one of 49,999 still runs; five types.
_RUNS = """
INSERT INTO runs (run_id, workflow_id, type, queue, status, priority, epoch, turn, ready, ready_at, owner, turn_failures,
                  started_at, closed_at, attempt, history_events, deadline_at, parent_id, parent_run_id, continued_from, first_run_id)
SELECT 'run-' || n, 'order-' || n, 'type-' || (n % 5), 'default',
       CASE WHEN n % 100003 = 7 THEN 'terminated' WHEN n % 49999 = 5 THEN 'running' WHEN n % 997 = 3 THEN 'failed' ELSE 'completed' END,
       0, 3, 6, false, {at} + n * {apart}, NULL, 0, {at} + n * {apart}, CASE WHEN n % 49999 = 5 THEN NULL ELSE {at} + n * {apart} + 1 END,
       1, 12, NULL, NULL, NULL, NULL, 'run-' || n
FROM {numbers}
"""
_PAYLOADS = """
INSERT INTO run_payloads (run_id, memo, search_attributes, result, failure, stuck, continued_as)
SELECT 'run-' || n, NULL, NULL, '{{"total": ' || n || '}}', NULL, NULL, NULL FROM {numbers}
"""
_NUMBERS = {
    "postgresql": "(SELECT generate_series({first}, {last}) AS n) s",
    "sqlite": "(WITH RECURSIVE s(n) AS (SELECT {first} UNION ALL SELECT n + 1 FROM s WHERE n < {last}) SELECT n FROM s) s",
}

Question = tuple[str, Callable[[int], RunFilter]]
QUESTIONS: tuple[Question, ...] = (
    ("first page of 100", lambda runs: RunFilter()),
    ("a page in the middle", lambda runs: RunFilter(page_after=f"{LONG_AGO + runs // 2 * APART_S!r}~run-{runs // 2}")),
    ("one day", lambda runs: RunFilter(started_after=LONG_AGO + runs, started_before=LONG_AGO + runs + 86_400)),
    ("one type", lambda runs: RunFilter(type=("type-3",))),
    ("failed: one in a thousand", lambda runs: RunFilter(status=(Status.FAILED,))),
    ("terminated: one in a hundred thousand", lambda runs: RunFilter(status=(Status.TERMINATED,))),
    ("running: one in fifty thousand", lambda runs: RunFilter(status=(Status.RUNNING,))),
    ("stuck: none", lambda runs: RunFilter(stuck=True)),
    ("ids that begin with order-77777", lambda runs: RunFilter(id_prefix="order-77777")),
)


def run(arena: Arena, runs: int, tell: Callable[[float], None]) -> Findings:
    """Pages on both databases, at a hundredth, a tenth and all of the runs."""
    figures: list[Figure] = []
    curves: list[Curve] = []
    with opened(arena, "lists") as site:
        file = Store.open(f"sqlite:///{site.env.folder / 'lists.db'}")
        file.upgrade()
        try:
            for name, store in (("PostgreSQL", site.store), ("SQLite", file)):
                points = _pages(store, runs, tell)
                figures += [Figure(f"{name}: {question}", line[-1][1], "ms", PAGE_MS_MAX) for question, line in points.items()]
                figures.append(Figure(f"{name}: count of all", _median_ms(partial(_count, store)), "ms"))
                curves += [Curve(f"{name}: {question}", points[question]) for question in PLOTTED]
        finally:
            file.dispose()
        figures.append(Figure("PostgreSQL: database for each run without its history", site.database_mib() * MIB / runs, "bytes"))
    return Findings(figures, [Plot("A page of a list", "runs in the store", "ms", curves)])


def _pages(store: Store, runs: int, tell: Callable[[float], None]) -> dict[str, list[tuple[float, float]]]:
    """By question: how many runs there were, and the milliseconds of a page."""
    points: dict[str, list[tuple[float, float]]] = {question: [] for question, _ in QUESTIONS}
    written = 0
    for share in SHARES:
        wanted = round(runs * share)
        _write(store, written, wanted)
        written = wanted
        for question, asked in QUESTIONS:
            points[question].append((written, _median_ms(partial(_page, store, asked(written)))))
        tell(share)
    return points


def _write(store: Store, first: int, last: int) -> None:
    for begin in range(first, last, BATCH):
        numbers = _NUMBERS[store.dialect].format(first=begin, last=min(begin + BATCH, last) - 1)
        with store.transaction() as tx:
            for text in (_RUNS, _PAYLOADS):
                tx.run(text.format(at=LONG_AGO, apart=APART_S, numbers=numbers))
    with store.transaction() as tx:  # as autovacuum would within a minute
        tx.run("ANALYZE")


def _page(store: Store, wanted: RunFilter) -> None:
    with store.transaction(readonly=True) as tx:
        listing.list_runs(tx, wanted)


def _count(store: Store) -> None:
    with store.transaction(readonly=True) as tx:
        listing.count_runs(tx, RunFilter())


def _median_ms(act: Callable[[], None]) -> float:
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        act()
        took.append((time.perf_counter() - began) * 1000)
    return statistics.median(took)


PROBE = Probe("lists", "pages of a list of so many runs", full=1_000_000, quick=20_000, run=run)
