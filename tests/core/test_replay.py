"""Replay: the same code gives the same commands, and changed code is told where it differs."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.core.replay import decide, revive
from orchestrator.errors import Divergence, HistoryTooNew
from schemas.history import ActivityScheduled, RunCompleted, RunTerminated, TimerStarted, Turn
from tests.core.twin import BEGIN, CONVERTER, Twin, brief, done, fired


def program(*steps: str, name: str = "program") -> Any:
    """A workflow that runs the named activities in sequence; "sleep" is a timer, "a+b" runs both at once."""

    @workflow.defn(name=name)
    async def run() -> str:
        for step in steps:
            if step == "sleep":
                await workflow.sleep(1)
                continue
            for handle in [workflow.start_activity(part, result_type=str) for part in step.split("+")]:
                await handle
        return "end"

    return run


def history_of(*steps: str) -> list[Turn]:
    run = Twin(program(*steps))
    run.start()
    for _ in range(20):
        commands = run.history[-1].commands
        if run.terminal is not None:
            break
        run.turn(
            *(
                fired(c.seq) if isinstance(c, TimerStarted) else done(c.seq, "ok")
                for c in commands
                if isinstance(c, ActivityScheduled | TimerStarted)
            )
        )
    return run.history


@pytest.mark.parametrize(
    "then, now, turn, position, expected, found",
    [
        (["a", "b"], ["a", "c"], 2, 1, "activity 'b' (id 2, number 2)", "activity 'c' (id 2, number 2)"),
        (["a+b"], ["b+a"], 1, 1, "activity 'a' (id 1, number 1)", "activity 'b' (id 1, number 1)"),
        (["a"], ["a+b"], 1, 2, "nothing", "activity 'b' (id 2, number 2)"),
        (["a+b"], ["a"], 1, 2, "activity 'b' (id 2, number 2)", "nothing"),
        (["a", "b"], ["a"], 2, 1, "activity 'b' (id 2, number 2)", "run completed"),
        (["a"], ["a", "b"], 2, 1, "run completed", "activity 'b' (id 2, number 2)"),
        (["sleep"], ["a"], 1, 1, "timer started (number 1)", "activity 'a' (id 1, number 1)"),
        (["a", "sleep", "b"], ["a", "b"], 2, 1, "timer started (number 2)", "activity 'b' (id 2, number 2)"),
    ],
)
def test_changed_code_is_told_where_it_differs_from_its_history(then, now, turn, position, expected, found):
    history = history_of(*then)
    definition = workflow.definition_of(program(*now))
    with pytest.raises(Divergence) as caught:
        revive(definition, history, CONVERTER)
    error = caught.value
    assert (error.turn, error.position, error.expected, error.found) == (turn, position, expected, found)
    assert "the run waits unharmed" in error.message


def test_arguments_options_and_failures_may_change_between_versions():
    def version(argument: int, **options: Any) -> Any:
        @workflow.defn(name="versioned")
        async def run() -> None:
            await workflow.execute_activity("a", argument, **options)
            raise ValueError(str(argument))

        return run

    run = Twin(version(1))
    run.start()
    run.turn(done(1))
    changed = workflow.definition_of(version(2, queue="other", start_to_close_timeout=5, priority=1, summary="new"))
    revive(changed, run.history, CONVERTER).close()


def test_a_turn_that_closed_the_run_from_outside_is_no_part_of_the_code():
    run = Twin(program("a"))
    run.start()
    run.record(RunTerminated("operator"))
    instance = revive(run.definition, run.history, CONVERTER)
    assert instance.turn == 2
    assert instance.terminal is None
    instance.close()


def test_a_history_of_a_newer_engine_is_left_to_newer_workers():
    run = Twin(program("a"))
    run.start()
    with pytest.raises(HistoryTooNew, match="0x80"):
        revive(run.definition, [Turn(1, BEGIN, run.history[0].arrivals, run.history[0].commands, flags=0x81)], CONVERTER)


def test_decide_is_a_function_of_history_and_arrivals_alone():
    run = Twin(program("a", "b"))
    run.start()
    decisions = [decide(run.definition, run.history, [done(1, "x")], at=BEGIN + 9, converter=CONVERTER) for _ in range(3)]
    assert decisions[0] == decisions[1] == decisions[2]
    assert brief(decisions[0].commands) == ["run b #2"]
    assert decisions[0].terminal is None
    run.turn(done(1, "x"))
    assert decide(run.definition, run.history, [done(2, "x")], at=BEGIN + 10, converter=CONVERTER).terminal == RunCompleted("end")


def test_a_divergence_closes_what_it_had_revived():
    left: list[str] = []

    def version(first: str) -> Any:
        @workflow.defn(name="closing")
        async def run() -> None:
            try:
                await workflow.execute_activity(first)
            finally:
                left.append(first)

        return run

    run = Twin(version("a"), replayed=False)
    run.start()
    with pytest.raises(Divergence):
        revive(workflow.definition_of(version("b")), run.history, CONVERTER)
    assert left == ["b"]


def test_an_instance_may_move_to_another_worker_in_the_middle():
    run = Twin(program("a", "sleep", "b"))
    run.start()
    run.turn(done(1, "x"))
    moved = revive(run.definition, run.history, CONVERTER)
    assert moved.turn == 2
    assert moved.history_events == run.live.history_events
    assert brief(moved.activate(run.at + 1, [fired(2)])) == ["run b #3"]
    moved.close()
