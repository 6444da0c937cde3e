"""A turn: what arrives is applied, author code runs until it waits, conditions are asked, commands come out."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from orchestrator import workflow
from orchestrator.core import instance
from orchestrator.errors import EngineStop, NonDeterministicCall, TooManyPending, TurnTooLong
from schemas.history import RunContinued
from tests.core.twin import BEGIN, CONVERTER, Twin, brief, cancel, canceled, done, failed, fired, signal


@workflow.defn
class Basket:
    def __init__(self) -> None:
        self.log: list[str] = []
        self.closed = False

    @workflow.run
    async def run(self) -> list[str]:
        self.log.append("run")
        await workflow.wait_condition(lambda: self.closed)
        return self.log

    @workflow.signal
    def add(self, item: str) -> None:
        self.log.append(item)

    @workflow.signal(name="add slowly")
    async def add_slowly(self, item: str) -> None:
        self.log.append(await workflow.execute_activity("look up", item, result_type=str))

    @workflow.signal
    def close(self) -> None:
        self.closed = True

    @workflow.query
    def items(self) -> list[str]:
        return self.log


def test_signals_that_come_with_the_start_are_handled_before_the_run_begins():
    run = Twin(Basket)
    run.start(signal("add", "early"), signal("add", "bird"))
    assert run.query("items") == ["early", "bird", "run"]


def test_signals_are_handled_in_the_order_in_which_they_came():
    run = Twin(Basket)
    run.start()
    run.turn(signal("add", "a"), signal("add slowly", "b"), signal("add", "c"))
    run.turn(done(1, "B"), signal("add", "d"), signal("close"))
    assert run.result == ["run", "a", "c", "d", "B"]


def test_a_repeated_signal_with_the_same_id_is_handled_once():
    run = Twin(Basket)
    run.start(signal("add", "x", key="1"))
    run.turn(signal("add", "x", key="1"), signal("add", "y", key="2"), signal("add", "y"), signal("close", key="3"))
    assert run.result == ["x", "run", "y", "y"]


def test_a_malformed_signal_is_dropped_with_a_remark_and_harms_nobody():
    run = Twin(Basket)
    run.start(signal("add", 5), signal("add"), signal("add", "a", "b"))
    assert run.query("items") == ["run"]
    assert len(run.live.remarks) == 3
    assert run.live.remarks[0].startswith("signal 'add' dropped: ")


def test_a_signal_without_handler_waits_for_one_and_keeps_its_order():
    @workflow.defn
    async def late() -> list[str]:
        got: list[str] = []
        await workflow.sleep(1)
        workflow.set_signal_handler("say", got.append)
        await workflow.wait_condition(lambda: len(got) >= 3)
        workflow.set_signal_handler("say", None)
        await workflow.sleep(1)
        return got

    run = Twin(late)
    run.start(signal("say", "one"), signal("other", "?"))
    run.signal("say", "two")
    assert run.turn(fired(1)) == ()
    assert brief(run.signal("say", "three")) == ["timer #2"]
    run.signal("say", "four")
    run.turn(fired(2))
    assert run.result == ["one", "two", "three"]


def test_signals_without_handler_have_a_limit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instance, "BUFFERED_SIGNALS_MAX", 2)
    run = Twin(Basket)
    run.start(signal("a"), signal("b"), signal("c"))
    assert run.live.remarks == ["signal 'c' dropped: 2 signals wait already for a handler"]


def test_conditions_are_asked_in_the_order_of_their_waits_once_all_callbacks_have_run():
    @workflow.defn
    class Conditions:
        def __init__(self) -> None:
            self.log: list[str] = []
            self.level = 0

        @workflow.run
        async def run(self) -> list[str]:
            await asyncio.gather(self.wait("a", 2), self.wait("b", 1), self.wait("c", 1))
            return self.log

        async def wait(self, name: str, level: int) -> None:
            await workflow.wait_condition(lambda: self.level >= level)
            self.log.append(name)
            self.level += 1

        @workflow.signal
        def raise_level(self) -> None:
            self.level += 1

    run = Twin(Conditions)
    run.start()
    run.signal("raise_level")
    assert run.result == ["b", "c", "a"]


def test_a_condition_that_raises_raises_where_it_is_awaited():
    @workflow.defn
    async def broken() -> str:
        with pytest.raises(ZeroDivisionError):
            await workflow.wait_condition(lambda: bool(1 / 0))
        try:
            await workflow.wait_condition(lambda: next(iter(())))
        except RuntimeError as error:
            return str(error)
        return "fine"

    run = Twin(broken)
    run.start()
    assert run.result == "the condition raised StopIteration()"


def test_a_condition_with_a_timeout_takes_its_timer_back_when_it_comes_true():
    @workflow.defn
    class Patient:
        ready = False

        @workflow.run
        async def run(self) -> str:
            try:
                await workflow.wait_condition(lambda: self.ready, timeout=60)
            except TimeoutError:
                return "too late"
            return "in time"

        @workflow.signal
        def go(self) -> None:
            self.ready = True

    in_time, too_late, both = Twin(Patient), Twin(Patient), Twin(Patient)
    assert brief(in_time.start()) == ["timer #1"]
    assert brief(in_time.signal("go")) == ["untimer #1", "run_completed"]
    assert in_time.result == "in time"
    too_late.start()
    assert brief(too_late.turn(fired(1))) == ["run_completed"]
    assert too_late.result == "too late"
    both.start()
    both.turn(signal("go"), fired(1))
    assert both.result == "too late"


def test_a_condition_that_holds_already_with_a_timeout_asks_for_no_timer():
    @workflow.defn
    async def at_once() -> str:
        await workflow.wait_condition(lambda: True, timeout=60)
        return "yes"

    assert brief(Twin(at_once).start()) == ["run_completed"]


def test_a_cancellation_that_comes_with_the_condition_is_not_lost():
    @workflow.defn
    class Both:
        ready = False

        @workflow.run
        async def run(self) -> str:
            await workflow.wait_condition(lambda: self.ready)
            return "went on"

        @workflow.signal
        def go(self) -> None:
            self.ready = True

    for arrivals in ((signal("go"), cancel()), (cancel(), signal("go"))):
        run = Twin(Both)
        run.start()
        assert brief(run.turn(*arrivals)) == ["run_canceled"]


def test_conditions_that_undo_each_other_fail_the_turn_instead_of_hanging(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instance, "CONDITION_ROUNDS_MAX", 100)

    @workflow.defn
    class PingPong:
        ball = 0

        @workflow.run
        async def run(self) -> None:
            await asyncio.gather(self.play(0), self.play(1))

        async def play(self, side: int) -> None:
            while True:
                await workflow.wait_condition(lambda: self.ball == side)
                self.ball = 1 - side

    with pytest.raises(TurnTooLong, match="undo each other"):
        Twin(PingPong).start()


def test_endless_recursion_fails_the_run_and_not_the_process():
    @workflow.defn
    async def deep() -> None:
        async def down() -> None:
            await down()

        await down()

    run = Twin(deep, replayed=False)  # how deep one gets depends on who calls
    run.start()
    assert run.failure.type == "RecursionError"


def test_arrivals_for_what_nobody_waits_for_are_borne_with_patience():
    run = Twin(Basket)
    run.start()
    assert run.turn(done(77), failed(78), canceled(79), fired(80), signal("nobody")) == ()


def test_too_much_at_the_same_time_fails_the_turn_with_the_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(instance, "PENDING_MAX", 10)

    @workflow.defn
    async def flood() -> None:
        await asyncio.gather(*(workflow.execute_activity("drop") for _ in range(11)))

    with pytest.raises(TooManyPending, match="Semaphore"):
        Twin(flood).start()


def test_a_call_that_a_replay_could_not_repeat_fails_the_turn_also_inside_a_task_group():
    import time

    @workflow.defn
    async def clock() -> None:
        async def look() -> float:
            return time.time()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(look())

    run = Twin(clock)
    with pytest.raises(NonDeterministicCall, match=r"workflow\.now"):
        run.start()


def test_the_arguments_of_the_run_reach_an_init_that_asks_for_them_before_any_handler():
    @workflow.defn
    class Greeter:
        @workflow.init
        def __init__(self, name: str) -> None:
            self.name = name
            self.heard: list[str] = []

        @workflow.run
        async def run(self, name: str) -> str:
            return f"{self.name}: {', '.join(self.heard)}"

        @workflow.signal
        def say(self, word: str) -> None:
            self.heard.append(f"{word} {self.name}")

    run = Twin(Greeter, "Ada")
    run.start(signal("say", "hello"))
    assert run.result == "Ada: hello Ada"


def test_the_run_ends_once_and_commands_of_its_last_turn_come_before_the_end():
    @workflow.defn
    class TwoEnds:
        @workflow.run
        async def run(self) -> str:
            await workflow.sleep(5)
            return "run"

        @workflow.signal
        def end(self) -> None:
            workflow.continue_as_new(args=[])

        @workflow.signal
        async def work(self) -> None:
            await workflow.execute_activity("last")

    run = Twin(TwoEnds)
    run.start()
    commands = run.turn(fired(1), signal("end"), signal("work"))
    assert brief(commands) == ["run last #2", "run_continued"]
    assert isinstance(run.terminal, RunContinued)
    assert "1 signal handler" in run.live.remarks[0]


def test_a_run_can_wait_until_all_handlers_have_finished():
    @workflow.defn
    class Polite:
        @workflow.run
        async def run(self) -> str:
            await workflow.wait_condition(workflow.all_handlers_finished)
            return "all done"

        @workflow.signal
        async def work(self) -> None:
            await workflow.execute_activity("work")

    run = Twin(Polite)
    assert brief(run.start(signal("work"), signal("work"))) == ["run work #1", "run work #2"]
    assert run.turn(done(2)) == ()
    assert brief(run.turn(done(1))) == ["run_completed"]
    assert run.live.remarks == []


def test_continue_as_new_changes_what_it_is_told_and_keeps_the_rest():
    @workflow.defn
    async def counter(n: int) -> None:
        if n < 3:
            workflow.continue_as_new(n + 1, queue="fast", run_timeout=60, memo={"why": "long"})
        workflow.continue_as_new(None, workflow=Basket)

    run = Twin(counter, 1)
    run.start()
    assert run.terminal == RunContinued(args=(2,), queue="fast", run_timeout_s=60.0, memo={"why": "long"})
    run = Twin(counter, 3)
    run.start()
    assert run.terminal == RunContinued(args=(None,), type="Basket")


def test_continue_as_new_works_from_inside_a_task_group():
    @workflow.defn
    async def grouped() -> None:
        async def step() -> None:
            workflow.continue_as_new()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(step())
            tasks.create_task(workflow.sleep(3))

    assert brief(Twin(grouped).start())[-1] == "run_continued"


def test_leaving_memory_runs_finally_blocks_here_and_leaves_nothing_behind(recwarn: pytest.WarningsRecorder):
    left: list[str] = []

    @workflow.defn
    async def tidy() -> None:
        async def child() -> None:
            try:
                await workflow.sleep(1)
            finally:
                left.append("child")
                await asyncio.sleep(0)
                left.append("never")

        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(child())
                await workflow.execute_activity("work")
        except Exception:  # noqa: BLE001 - would swallow an ordinary exception, and go on
            left.append("swallowed")
        finally:
            left.append("run")
            try:
                await workflow.execute_activity("clean up")
            except EngineStop:
                left.append("stopped")
                raise

    run = Twin(tidy, replayed=False)
    run.start()
    tasks = list(run.live.loop.tasks)
    run.live.close()
    run.live.close()
    assert sorted(left) == ["child", "run", "stopped"]
    assert not run.live.loop.tasks
    assert all(inspect.getcoroutinestate(coroutine) == "CORO_CLOSED" for task in tasks if inspect.iscoroutine(coroutine := task.get_coro()))
    del tasks, run
    assert not recwarn.list


def test_a_failed_turn_closes_its_instance():
    left: list[str] = []

    @workflow.defn
    async def fails() -> None:
        async def child() -> None:
            try:
                await workflow.sleep(1)
            finally:
                left.append("closed")

        asyncio.create_task(child())  # noqa: RUF006 - the loop keeps it
        await asyncio.sleep(0)
        asyncio.get_running_loop().stop()

    with pytest.raises(NonDeterministicCall):
        Twin(fails, replayed=False).start()
    assert left == ["closed"]


def test_time_and_chance_are_those_of_the_turn_and_of_the_run():
    @workflow.defn
    async def chances() -> list[str]:
        first = [workflow.now().isoformat(), str(workflow.time()), str(workflow.uuid4()), str(workflow.random().random())]
        await workflow.sleep(10)
        return [*first, workflow.now().isoformat(), str(workflow.uuid4())]

    one, two, other = Twin(chances), Twin(chances), Twin(chances, run_id="r-2")
    for run in (one, two, other):
        run.start()
        run.turn(fired(1))
    assert one.result == two.result
    assert one.result[0] == "1970-01-12T13:46:41+00:00"
    assert one.result[4] == "1970-01-12T13:46:51+00:00"
    assert one.result[2] != one.result[5]
    assert other.result[2] != one.result[2]


def test_info_tells_the_facts_of_the_run():
    @workflow.defn
    async def facts() -> dict[str, object]:
        await workflow.sleep(1)
        info = workflow.info()
        assert info.memo == {"a": 1}
        assert not info.is_continue_as_new_suggested
        return {"id": info.workflow_id, "run": info.run_id, "type": info.workflow_type, "length": info.history_length, "turn": info.turn}

    run = Twin(facts, memo={"a": CONVERTER.encode(1, what="memo")})
    run.start()
    run.turn(fired(1))
    assert run.result == {"id": "w-1", "run": "r-1", "type": "facts", "length": 2, "turn": 2}
    assert run.at == BEGIN + 2


def test_the_logger_is_silent_in_replay(caplog: pytest.LogCaptureFixture):
    @workflow.defn
    async def chatty() -> None:
        workflow.logger.warning("hello %s", "once")
        await workflow.sleep(1)
        workflow.logger.warning("bye")

    run = Twin(chatty, replayed=False)
    run.start()
    assert [record.getMessage() for record in caplog.records] == ["hello once (w-1)"]
    assert caplog.records[0].__dict__["run_id"] == "r-1"
    caplog.clear()
    run.replayed = True
    run.turn(fired(1))
    assert [record.getMessage() for record in caplog.records] == ["bye (w-1)", "bye (w-1)"]  # the twin is live in its last turn too
