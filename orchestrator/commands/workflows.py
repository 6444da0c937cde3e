"""`orchestrator workflow …`: what a client can do, from a shell; law: one call of the client each, and its error is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from orchestrator import settings as settings_module
from orchestrator.auditing import audited
from orchestrator.client import Client
from orchestrator.clock import SYSTEM
from orchestrator.commands.printing import AsJson, actor, compact, duration, moment, put, put_json, put_table
from orchestrator.errors import InvalidArgument
from orchestrator.filters import LIMIT_MAX
from orchestrator.store import Store
from schemas.history import Failure, Json, Turn
from schemas.runs import PendingActivity, RunDescription

LIST_SHOWN = 50
CHILDREN_SHOWN = 50
QUERY_TIMEOUT_S = 10.0
CAUSES_SHOWN_MAX = 10
_STATUS_STYLES = {
    "running": "cyan",
    "completed": "green",
    "failed": "red",
    "timed_out": "red",
    "terminated": "yellow",
    "canceled": "yellow",
}

Id = Annotated[str, typer.Argument(help="The workflow id.")]
RunId = Annotated[str | None, typer.Option("--run-id", help="Exactly this run, instead of the open or latest one.")]
Args = Annotated[list[str] | None, typer.Option("--arg", "-a", help="One argument as JSON, or plain text; repeat it for more.")]
Reason = Annotated[str, typer.Option(help="Why; it is kept in the history.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Start, list, inspect, signal, query and end workflows.")


@app.command()
def start(
    workflow_type: Annotated[str, typer.Argument(metavar="TYPE", help="The name of the workflow type.")],
    *,
    arg: Args = None,
    workflow_id: Annotated[str | None, typer.Option("--id", help="The workflow id; a fresh one if not given.")] = None,
    queue: Annotated[str | None, typer.Option("--queue", "-q", help="The queue; the default one if not given.")] = None,
    run_timeout: Annotated[float | None, typer.Option(help="Seconds after which the run is ended.", min=0.001)] = None,
    delay: Annotated[float | None, typer.Option(help="Seconds to wait before it begins.", min=0)] = None,
    priority: Annotated[int, typer.Option(help="Higher goes first.")] = 0,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the result and print it.")] = False,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait with --wait; for ever if not given.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Start a workflow."""
    chosen = SYSTEM.fresh_id() if workflow_id is None else workflow_id
    with Client() as client:
        with _acting("start", chosen, type=workflow_type, queue=queue):
            handle = client.start_workflow(
                workflow_type,
                args=_values(arg),
                id=chosen,
                queue=queue,
                run_timeout=run_timeout,
                start_delay=delay,
                priority=priority,
            )
        if wait:
            _put_result(handle.result(timeout), as_json=as_json)
        elif as_json:
            put_json({"workflow_id": handle.id, "run_id": handle.run_id})
        else:
            put(f"started {handle.id} (run {handle.run_id})")


@app.command("list")
def list_(
    terms: Annotated[
        list[str] | None, typer.Argument(metavar="[FILTER]...", help="status=failed type=Order queue=q id^=order- stuck")
    ] = None,
    *,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=LIMIT_MAX)] = LIST_SHOWN,
    count: Annotated[bool, typer.Option("--count", help="Only how many there are.")] = False,
    as_json: AsJson = False,
) -> None:
    """List workflows, newest first."""
    wanted = " ".join(terms or ())
    with Client() as client:
        if count:
            found = client.count_workflows(wanted)
            put_json({"count": found}) if as_json else put(f"{found:,}")
            return
        runs = list(client.list_workflows(wanted, limit=limit))
        total = client.count_workflows(wanted) if len(runs) == limit else len(runs)
    if as_json:
        put_json([asdict(run) for run in runs])
        return
    rows = [(run.workflow_id, run.type, _status(run), run.queue, moment(run.started_at), _lasted(run)) for run in runs]
    put_table(("id", "type", "status", "queue", "started", "lasted"), rows, empty="no workflows")
    if total > len(runs):
        put(f"{len(runs):,} of {total:,}; --limit shows more")


@app.command()
def show(workflow_id: Id, *, run_id: RunId = None, as_json: AsJson = False) -> None:
    """All that is known about a workflow, and what it waits for."""
    with Client() as client:
        handle = client.get_handle(workflow_id, run_id)
        run, pending, children = handle.describe(), handle.pending_activities(), handle.children(CHILDREN_SHOWN + 1)
    if as_json:
        put_json({**asdict(run), "pending_activities": [asdict(one) for one in pending], "children": [asdict(one) for one in children]})
        return
    rows: list[tuple[str, object]] = [
        ("workflow id", run.workflow_id),
        ("run id", run.run_id),
        ("type", run.type),
        ("queue", run.queue),
        ("status", _status(run)),
        ("started", moment(run.started_at)),
        ("closed", moment(run.closed_at)),
        ("lasted", _lasted(run)),
        ("history", f"{run.turn:,} turns, {run.history_events:,} events"),
        ("deadline", moment(run.deadline_at)),
        ("parent", run.parent_id or ""),
        ("continued as", run.continued_as or ""),
        ("memo", compact(run.memo) if run.memo else ""),
        ("search attributes", compact(run.search_attributes) if run.search_attributes else ""),
        ("result", compact(run.result) if str(run.status) == "completed" else ""),
        ("failure", _failure(run.failure)),
        ("stuck", f"{_failure(run.stuck)} ({run.turn_failures:,} tries)" if run.stuck else ""),
    ]
    put_table(("", ""), [(name, value) for name, value in rows if value], empty="")
    if pending:
        put("")
        put_table(("waits for", "type", "state", "attempt", "worker", "last failure"), map(_waiting, pending), empty="")
    if children:
        put("")
        shown = [(one.workflow_id, one.type, _status(one), one.queue, _lasted(one)) for one in children[:CHILDREN_SHOWN]]
        put_table(("child workflow", "type", "status", "queue", "lasted"), shown, empty="")
        if len(children) > CHILDREN_SHOWN:
            put(f"only the first {CHILDREN_SHOWN:,} of its children; --json and SQL (workflow_runs.parent_run_id) show more")


@app.command()
def history(workflow_id: Id, *, run_id: RunId = None, as_json: AsJson = False) -> None:
    """Every turn: what arrived, and what the code asked for."""
    with Client() as client:
        turns = client.get_handle(workflow_id, run_id).history()
    if as_json:
        put_json([asdict(turn) for turn in turns])
        return
    put_table(("turn", "at", "", "event", "details"), [row for turn in turns for row in _events(turn)], empty="no turn was taken yet")


@app.command()
def result(
    workflow_id: Id,
    *,
    run_id: RunId = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; for ever if not given.", min=0)] = None,
    as_json: AsJson = False,
) -> None:
    """Wait for the result and print it. Exit code 1 and the reason if the workflow did not complete."""
    with Client() as client:
        _put_result(client.get_handle(workflow_id, run_id).result(timeout), as_json=as_json)


@app.command()
def signal(
    workflow_id: Id,
    name: Annotated[str, typer.Argument(help="The signal.")],
    *,
    arg: Args = None,
    run_id: RunId = None,
    as_json: AsJson = False,
) -> None:
    """Send a signal."""
    with Client() as client, _acting("signal", workflow_id, name=name):
        client.get_handle(workflow_id, run_id).signal(name, args=_values(arg))
    _done(f"signal {name} is stored", workflow_id, as_json=as_json)


@app.command()
def query(
    workflow_id: Id,
    name: Annotated[str, typer.Argument(help="The query.")],
    *,
    arg: Args = None,
    run_id: RunId = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for a worker.", min=0)] = QUERY_TIMEOUT_S,
    as_json: AsJson = False,
) -> None:
    """Ask a workflow a question."""
    with Client() as client:
        _put_result(client.get_handle(workflow_id, run_id).query(name, args=_values(arg), timeout=timeout), as_json=as_json)


@app.command()
def cancel(workflow_id: Id, *, reason: Reason = "", run_id: RunId = None, as_json: AsJson = False) -> None:
    """Ask a workflow to cancel itself; its code decides what that means."""
    with Client() as client, _acting("cancel", workflow_id, reason=reason):
        client.get_handle(workflow_id, run_id).cancel(reason)
    _done("cancellation is requested", workflow_id, as_json=as_json)


@app.command()
def terminate(workflow_id: Id, *, reason: Reason = "", run_id: RunId = None, as_json: AsJson = False) -> None:
    """End a workflow at once, without asking its code."""
    with Client() as client, _acting("terminate", workflow_id, reason=reason):
        client.get_handle(workflow_id, run_id).terminate(reason)
    _done("terminated", workflow_id, as_json=as_json)


@contextmanager
def _acting(what: str, workflow_id: str, **params: Json) -> Iterator[None]:
    """Enter what is done to a workflow into the audit, as the API does."""
    given = {name: value for name, value in params.items() if value}
    target = f"workflow:{workflow_id}"
    with (
        Store.of(settings_module.current()) as store,
        audited(store, actor=actor(), action=f"workflow.{what}", target=target, params=given),
    ):
        yield


def _values(texts: Sequence[str] | None) -> list[Json]:
    return [_value(text) for text in texts or ()]


def _value(text: str) -> Json:
    """JSON if it looks like JSON, otherwise the text itself: nobody wants to quote quotes for a shell."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if text.lstrip()[:1] in {"{", "[", '"'}:
            raise InvalidArgument(f"--arg {text!r} begins like JSON but is none: {error}") from None
        return text


def _put_result(value: Any, *, as_json: bool) -> None:  # noqa: ANN401 - what the workflow returned
    if as_json:
        put_json({"result": value})
    else:
        put(value if isinstance(value, str) else compact(value))


def _done(what: str, workflow_id: str, *, as_json: bool) -> None:
    if as_json:
        put_json({"ok": True, "workflow_id": workflow_id})
    else:
        put(f"{workflow_id}: {what}")


def _status(run: RunDescription) -> Text:
    text = Text(str(run.status).replace("_", " "), style=_STATUS_STYLES.get(str(run.status), ""))
    return text.append(" stuck", style="bold red") if run.stuck else text


def _lasted(run: RunDescription) -> str:
    return duration((SYSTEM.now() if run.closed_at is None else run.closed_at) - run.started_at)


def _failure(failure: Failure | None) -> str:
    """The chain of causes on one line."""
    parts = []
    for _ in range(CAUSES_SHOWN_MAX):
        if failure is None:
            break
        parts.append(f"{failure.type}: {failure.message}" if failure.type else failure.message)
        failure = failure.cause
    return " <- ".join(parts)


def _waiting(one: PendingActivity) -> tuple[str, str, str, str, str, str]:
    # The identity of a worker is for machines; the attempt says more to people.
    return one.scheduled.activity_id, one.scheduled.type, str(one.state), f"{one.key.attempt}", one.worker or "", _failure(one.last_failure)


def _events(turn: Turn) -> list[tuple[str, str, str, str, str]]:
    rows: list[tuple[str, str, str, str, str]] = []
    for mark, events in (("<-", turn.arrivals), ("->", turn.commands)):
        for event in events:
            facts = {key: value for key, value in asdict(event).items() if key != "kind" and value not in (None, "", {}, [], ())}
            first = not rows
            rows.append((f"{turn.turn}" if first else "", moment(turn.at) if first else "", mark, event.kind, compact(facts)))
    return rows
