"""Patches: open runs survive a change of their code, each on its own side of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrator import workflow
from orchestrator.core import patches
from orchestrator.core.replay import decide, revive
from orchestrator.errors import Divergence, InvalidArgument
from schemas.history import Arrival, PatchMarked
from tests.core.twin import CONVERTER, Twin, brief, done, signal

PATCH = "ship-first"


def version(body: Callable[[], Any]) -> Any:
    """A workflow of one name whose code is `body`."""

    @workflow.defn(name="patched workflow")
    class Versioned:
        @workflow.run
        async def run(self) -> str:
            await workflow.wait_condition(lambda: self.go)
            return str(await body())

        def __init__(self) -> None:
            self.go = False

        @workflow.signal
        def begin(self) -> None:
            self.go = True

    return Versioned


async def old() -> str:
    await workflow.execute_activity("charge")
    return "old"


async def new() -> str:
    await workflow.execute_activity("ship")
    return "new"


async def both() -> str:
    return await (new() if workflow.patched(PATCH) else old())


async def settled() -> str:
    workflow.deprecate_patch(PATCH)
    return await new()


def history_of(body: Callable[[], Any]) -> Twin:
    run = Twin(version(body))
    run.start()
    run.signal("begin")
    return run


def continued(run: Twin, body: Callable[[], Any], *arrivals: Arrival) -> list[str]:
    """What other code asks for next, after the history of a run."""
    decision = decide(workflow.definition_of(version(body)), run.history, arrivals, at=run.at + 1, converter=CONVERTER)
    return brief(decision.commands)


def test_a_new_run_takes_the_new_side_and_its_history_says_so():
    run = Twin(version(both))
    run.start()
    commands = run.signal("begin")
    assert commands[0] == PatchMarked(PATCH)
    assert brief(commands) == ["patch_marked", "run ship #1"]
    run.turn(done(1))
    assert run.result == "new"


def test_a_run_that_was_there_before_the_change_stays_on_the_old_side():
    run = history_of(old)
    assert continued(run, both, done(1)) == ["run_completed"]
    revive(workflow.definition_of(version(both)), run.history, CONVERTER).close()


def test_a_run_that_comes_to_the_change_for_the_first_time_takes_the_new_side():
    run = Twin(version(old))
    run.start()
    assert continued(run, both, signal("begin")) == ["patch_marked", "run ship #1"]


def test_an_answer_is_for_good_however_often_it_is_asked_for():
    async def asks_often() -> str:
        answers = [workflow.patched(PATCH)]
        await workflow.execute_activity("ship" if answers[0] else "charge")
        answers += [workflow.patched(PATCH), workflow.patched(PATCH)]
        return str(answers)

    assert continued(history_of(old), asks_often, done(1)) == ["run_completed"]
    stays = decide(workflow.definition_of(version(asks_often)), history_of(old).history, [done(1)], at=9e9, converter=CONVERTER)
    assert "False, False, False" in str(stays.terminal)
    run = history_of(asks_often)
    run.turn(done(1))
    assert run.result == "[True, True, True]"
    assert sum(isinstance(command, PatchMarked) for turn in run.history for command in turn.commands) == 1


@pytest.mark.parametrize("then, now", [(both, both), (both, settled), (settled, settled), (settled, both), (settled, new)])
def test_runs_of_the_new_side_go_on_under_every_later_version(then, now):
    assert continued(history_of(then), now, done(1)) == ["run_completed"]


def test_deprecating_leaves_runs_without_a_mark_alone():
    assert continued(history_of(new), settled, done(1)) == ["run_completed"]


def test_code_that_forgets_a_patch_too_early_is_told_so():
    with pytest.raises(Divergence) as caught:
        continued(history_of(both), new, done(1))
    assert caught.value.expected == f"patch {PATCH!r}"


def test_marks_that_code_passes_over_are_counted_with_the_history_they_stand_in():
    run = history_of(settled)
    revived = revive(workflow.definition_of(version(new)), run.history, CONVERTER)
    assert revived.history_events == run.live.history_events
    revived.close()


def test_an_id_must_be_one_and_there_must_be_an_end_to_them(monkeypatch):
    monkeypatch.setattr(patches, "PATCHES_MAX", 2)

    @workflow.defn
    async def asks() -> str:
        with pytest.raises(InvalidArgument, match="must not be empty"):
            workflow.patched("")
        assert all([workflow.patched("a"), workflow.patched("b"), workflow.patched("a")])
        with pytest.raises(InvalidArgument, match="must not be made from what changes"):
            workflow.patched("c")
        return "told"

    assert brief(Twin(asks).start()) == ["patch_marked", "patch_marked", "run_completed"]


def test_a_query_asks_for_no_patch():
    @workflow.defn
    class Asked:
        @workflow.run
        async def run(self) -> None:
            await workflow.wait_condition(lambda: False)

        @workflow.query
        def side(self) -> str:
            with pytest.raises(Exception, match="patched is not possible inside query"):
                workflow.patched(PATCH)
            return "neither"

    run = Twin(Asked)
    run.start()
    assert run.query("side") == "neither"
