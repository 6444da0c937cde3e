"""`orchestrator doctor`: is everything there that a workflow needs; law: each finding that is not ok comes with a remedy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import typer
from rich.text import Text

from orchestrator import settings as settings_module
from orchestrator.celery import app as celery_app
from orchestrator.celery import orchestrator_of
from orchestrator.clock import SYSTEM
from orchestrator.commands.printing import AsJson, out, put_json
from orchestrator.errors import BrokerUnavailable, DatabaseNotMigrated, DatabaseUnavailable
from orchestrator.store import Store, due, health, listing, workers
from schemas.runs import RunFilter, Status
from schemas.settings import Settings

PYTHON_MIN = (3, 11)
SKEW_MAX_S = 1.0
SKEW_PROBES = 3  # the quickest answer is the most precise one
WAITING_MAX_S = 10.0

app = typer.Typer(add_completion=False)


@dataclass(frozen=True)
class Finding:
    """One line of the diagnosis; without a remedy it is ok."""

    what: str
    found: str
    remedy: str = ""
    ok: bool = True


@app.command()
def doctor(*, as_json: AsJson = False) -> None:
    """Check Python, database, schema, broker, workers, beat, clocks and stuck work; exit code 1 if anything is not in order."""
    findings = list(examine(settings_module.current()))
    if as_json:
        put_json({"ok": all(finding.ok for finding in findings), "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            verdict = ("ok     ", "green") if finding.ok else ("not ok ", "bold red")
            out.print(Text.assemble(verdict, (f"{finding.what:<9} ", "bold"), finding.found))
            if not finding.ok:
                out.print(Text(f"       {'':<9} {finding.remedy}"))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, one after the other; those that need a database are left out without one."""
    version = ".".join(map(str, sys.version_info[:3]))
    yield _judged("python", version, sys.version_info >= PYTHON_MIN, "Use Python 3.11 or newer.")
    yield _broker()
    # Looking must not leave an empty file behind.
    if settings_module.embedded_database(settings) and not settings.home.is_dir():
        yield _judged(
            "database", f"none yet in {settings.home.absolute()}", False, "Run `orchestrator dev`, or set ORCHESTRATOR_DATABASE_URL."
        )
        return
    with Store.of(settings) as store:
        for check in (_schema, _workers, _beat, _clock, _waiting, _stuck):
            try:
                yield check(store)
            except (DatabaseUnavailable, DatabaseNotMigrated) as error:
                yield Finding("database", error.message, "See above.", ok=False)
                return


def _judged(what: str, found: str, ok: bool, remedy: str) -> Finding:
    return Finding(what, found, "" if ok else remedy, ok)


def _broker() -> Finding:
    try:
        orchestrator_of(celery_app).check_broker()
    except BrokerUnavailable as error:
        return Finding("broker", error.message, "Start it, or set ORCHESTRATOR_BROKER_URL.", ok=False)
    return Finding("broker", "answers")


def _schema(store: Store) -> Finding:
    state = health.schema_state(store)
    return _judged("database", f"{store}, schema {state.current or 'none'}", state.usable, "Run `orchestrator db upgrade`.")


def _workers(store: Store) -> Finding:
    with store.transaction(readonly=True) as tx:
        present = [row for row in workers.list_workers(tx) if not row.expired]
    alive = [row for row in present if not row.stopping]
    queues = sorted({queue for row in alive for queue in row.identity.queues})
    found = f"{len(alive)} alive, on {', '.join(queues)}" if alive else "none alive"
    if len(present) > len(alive):
        found += f"; {len(present) - len(alive)} more finish what they have and stop"
    return _judged("workers", found, bool(alive), "Start one: `orchestrator worker -Q QUEUE`, or everything: `orchestrator dev`.")


def _beat(store: Store) -> Finding:
    with store.transaction(readonly=True) as tx:
        lease = health.lease(tx, "beat")
    if lease is None or lease.left_s <= 0:
        return Finding("beat", "not running", "Start it: `orchestrator beat`. Without it timers of idle workflows fire late.", ok=False)
    host, _, pid = lease.holder.partition(":")
    return Finding("beat", f"active: pid {pid.partition(':')[0]} on {host}")


def _clock(store: Store) -> Finding:
    probes = []
    for _ in range(SKEW_PROBES):
        began = SYSTEM.now()
        with store.transaction(readonly=True) as tx:
            theirs = tx.now()
        ended = SYSTEM.now()
        probes.append((ended - began, theirs - (began + ended) / 2))
    skew_s = min(probes)[1]
    found = f"the database is {abs(skew_s):.3f} s {'ahead of' if skew_s > 0 else 'behind'} this machine"
    return _judged("clock", found, abs(skew_s) <= SKEW_MAX_S, "Set the clocks with NTP (timedatectl set-ntp true).")


def _waiting(store: Store) -> Finding:
    with store.transaction(readonly=True) as tx:
        served = {queue for row in workers.list_workers(tx) if not (row.expired or row.stopping) for queue in row.identity.queues}
        late = due.forgotten_queues(tx, older_than_s=WAITING_MAX_S)
    unserved = sorted(late - served)
    busy = sorted(late & served)
    if unserved:
        remedy = f"Start a worker for them: `orchestrator worker -Q {','.join(unserved)}`."
        return Finding("queues", f"work waits where nobody works: {', '.join(unserved)}", remedy, ok=False)
    return Finding(
        "queues", f"busy: work waits for over {WAITING_MAX_S:g} s on {', '.join(busy)}" if busy else "no work waits for a worker"
    )


def _stuck(store: Store) -> Finding:
    with store.transaction(readonly=True) as tx:
        open_runs = RunFilter(status=(Status.RUNNING,))
        running, stuck = (listing.count_runs(tx, wanted) for wanted in (open_runs, replace(open_runs, stuck=True)))
    return _judged("workflows", f"{running:,} open, {stuck:,} stuck", not stuck, "See why: `orchestrator workflow list stuck`.")
