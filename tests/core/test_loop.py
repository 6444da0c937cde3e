"""The deterministic loop: asyncio as authors know it, first in, first out, with durable timers."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from orchestrator import workflow
from orchestrator.errors import NonDeterministicCall
from schemas.history import TimerStarted
from tests.core.twin import Twin, brief, cancel, done, failed, fired


def test_callbacks_run_in_the_order_they_were_asked_for():
    @workflow.defn
    async def order() -> list[str]:
        log: list[str] = []

        async def say(word: str) -> None:
            log.append(f"{word} 1")
            await asyncio.sleep(0)
            log.append(f"{word} 2")

        tasks = [asyncio.create_task(say(word)) for word in "abc"]
        log.append("created")
        for task in tasks:
            await task
        return log

    run = Twin(order)
    run.start()
    assert run.result == ["created", "a 1", "b 1", "c 1", "a 2", "b 2", "c 2"]


def test_gather_gives_results_in_the_order_of_its_arguments_whatever_comes_first():
    @workflow.defn
    async def parallel() -> list[int]:
        return list(await asyncio.gather(*(workflow.execute_activity("double", n, result_type=int) for n in range(3))))

    run = Twin(parallel)
    assert brief(run.start()) == ["run double #1", "run double #2", "run double #3"]
    run.turn(done(3, 30))
    run.turn(done(1, 10))
    run.turn(done(2, 20))
    assert run.result == [10, 20, 30]


def test_the_first_failure_in_a_task_group_cancels_its_other_activities():
    @workflow.defn
    async def group() -> list[str]:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(workflow.execute_activity("a"))
                tasks.create_task(workflow.execute_activity("b"))
        except BaseExceptionGroup as caught:
            return [str(error.__cause__) for error in caught.exceptions]
        return []

    run = Twin(group)
    run.start()
    assert brief(run.turn(failed(1, "a broke"))) == ["cancel #2", "run_completed"]
    assert run.result == ["a broke", "the activity was cancelled"]


def test_wait_for_starts_one_timer_and_takes_it_back_when_it_is_not_needed():
    @workflow.defn
    async def bounded() -> str:
        return await asyncio.wait_for(workflow.execute_activity("slow", result_type=str), timeout=30)

    run = Twin(bounded)
    assert brief(run.start()) in (["timer #1", "run slow #2"], ["run slow #1", "timer #2"])  # as the version of Python has it
    timer = next(iter(run.timers))
    assert run.timers[timer] == pytest.approx(run.at + 30)
    commands = run.turn(done(3 - timer, "fast"))
    assert brief(commands) == [f"untimer #{timer}", "run_completed"]
    assert run.result == "fast"


def test_a_timeout_around_a_sleep_is_a_timeout_error():
    @workflow.defn
    async def impatient() -> str:
        try:
            async with asyncio.timeout(5):
                await workflow.sleep(100)
        except TimeoutError:
            return "gave up"
        return "slept"

    run = Twin(impatient)
    assert brief(run.start()) == ["timer #1", "timer #2"]
    assert brief(run.turn(fired(1))) == ["untimer #2", "run_completed"]
    assert run.result == "gave up"


def test_a_timer_that_is_created_and_cancelled_inside_one_turn_leaves_no_trace():
    @workflow.defn
    async def hasty() -> str:
        async with asyncio.timeout(60):
            await asyncio.sleep(0)
        task = asyncio.create_task(workflow.sleep(10))
        await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await workflow.sleep(1)
        return "done"

    run = Twin(hasty)
    (command,) = run.start()
    assert command.kind == "timer_started"
    assert brief(run.turn(fired(command.seq))) == ["run_completed"]


def test_a_shielded_activity_survives_the_cancellation_of_the_run():
    @workflow.defn
    async def shielded() -> str:
        handle = workflow.start_activity("precious", result_type=str)
        try:
            return await asyncio.shield(handle)
        except asyncio.CancelledError:
            return "kept " + await handle

    run = Twin(shielded)
    run.start()
    assert run.turn(cancel()) == ()
    run.turn(done(1, "gold"))
    assert run.result == "kept gold"


def test_locks_events_queues_and_semaphores_work_as_in_any_asyncio_program():
    @workflow.defn
    async def primitives() -> list[str]:
        log: list[str] = []
        lock, event, queue, two = asyncio.Lock(), asyncio.Event(), asyncio.Queue[str](maxsize=1), asyncio.Semaphore(2)

        async def worker(name: str) -> None:
            async with two:
                await workflow.sleep(1)
                async with lock:
                    log.append(name)
                await queue.put(name)

        async def reader() -> None:
            while len(log) < 6:
                word = await queue.get()
                log.append(f"got {word}")
            event.set()

        async with asyncio.TaskGroup() as tasks:
            for name in "xyz":
                tasks.create_task(worker(name))
            tasks.create_task(reader())
            await event.wait()
        return log

    run = Twin(primitives)
    assert brief(run.start()) == ["timer #1", "timer #2"]  # the semaphore holds the third back
    assert brief(run.turn(fired(2))) == ["timer #3"]
    run.turn(fired(1), fired(3))
    assert run.result == ["y", "got y", "x", "z", "got x", "got z"]


def test_a_task_group_cancels_its_tasks_in_an_order_that_a_replay_repeats():
    @workflow.defn
    async def wide() -> None:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(50):
                tasks.create_task(workflow.execute_activity("work"))

    run = Twin(wide)
    run.start()
    assert brief(run.turn(cancel())) == [*(f"cancel #{n}" for n in range(1, 51)), "run_canceled"]


def test_waiting_for_some_of_many_gives_lists_in_the_order_they_were_given():
    @workflow.defn
    async def first_two() -> list[object]:
        handles = [workflow.start_activity("work", n, result_type=int) for n in range(5)]
        done, pending = await workflow.wait(handles, timeout=60, return_when=asyncio.FIRST_COMPLETED)
        early = [task.result() for task in done]
        late = [await result for result in workflow.as_completed(pending, timeout=60)]
        return [early, late]

    run = Twin(first_two)
    run.start()
    run.turn(done(4, 4), done(2, 2))
    run.turn(done(5, 5))
    run.turn(done(1, 1), done(3, 3))
    assert run.result == [[2, 4], [5, 1, 3]]


def test_coroutines_start_in_their_order_in_as_completed():
    @workflow.defn
    async def ordered() -> None:
        for result in workflow.as_completed(workflow.execute_activity(name) for name in "abcdefgh"):
            await result

    assert brief(Twin(ordered).start()) == [f"run {name} #{n}" for n, name in enumerate("abcdefgh", start=1)]


def test_asyncio_sleep_is_a_durable_timer_and_sleep_of_zero_is_none():
    @workflow.defn
    async def sleeper() -> float:
        await asyncio.sleep(0)
        await asyncio.sleep(2.5)
        return workflow.time()

    run = Twin(sleeper)
    (timer,) = run.start()
    assert isinstance(timer, TimerStarted)
    began = run.at
    assert run.timers == {timer.seq: began + 2.5}
    run.turn(fired(timer.seq))
    assert run.result == began + 2.5


def test_an_endless_sleep_becomes_a_timer_that_a_database_can_hold():
    @workflow.defn
    async def forever() -> None:
        await asyncio.sleep(float("inf"))

    (timer,) = Twin(forever).start()
    assert timer.kind == "timer_started"
    assert timer.fire_at == 253_402_300_799.0


def test_tasks_are_named_by_their_own_run_and_not_by_the_process():
    @workflow.defn
    async def names() -> list[str]:
        tasks = [asyncio.create_task(asyncio.sleep(0)) for _ in range(2)]
        await asyncio.gather(*tasks)
        return [task.get_name() for task in tasks]

    first, second = Twin(names), Twin(names)
    first.start()
    second.start()
    assert first.result == second.result == ["Task-2", "Task-3"]  # the first is the run


@pytest.mark.parametrize(
    "call",
    [
        lambda: asyncio.to_thread(len, "x"),
        lambda: asyncio.get_running_loop().run_in_executor(None, len, "x"),
        lambda: asyncio.open_connection("127.0.0.1", 1),
        lambda: asyncio.create_subprocess_exec("true"),
        lambda: asyncio.get_running_loop().call_soon_threadsafe(print),
        lambda: asyncio.get_running_loop().getaddrinfo("localhost", 80),
        lambda: asyncio.get_running_loop().run_forever(),
        lambda: asyncio.get_running_loop().add_reader(0, print),
    ],
)
def test_what_a_replay_could_not_repeat_is_refused_and_fails_the_turn(call):
    @workflow.defn
    async def forbidden() -> None:
        found = call()
        if found is not None:
            await found

    with pytest.raises(NonDeterministicCall, match="in a workflow, because a replay could not repeat it"):
        Twin(forbidden).start()


def test_an_exception_in_a_bare_callback_fails_the_turn():
    @workflow.defn
    async def careless() -> None:
        asyncio.get_running_loop().call_soon(lambda: 1 / 0)
        await workflow.sleep(1)

    with pytest.raises(ZeroDivisionError):
        Twin(careless).start()


def test_an_exit_inside_a_workflow_does_not_end_the_process():
    @workflow.defn
    async def leaver() -> str:
        async def leave() -> None:
            raise SystemExit(3)

        try:
            await asyncio.create_task(leave())
        except SystemExit as error:
            return f"tried to exit with {error.code}"
        return "stayed"

    run = Twin(leaver)
    run.start()
    assert run.result == "tried to exit with 3"


def test_a_task_that_failed_and_that_nobody_awaits_is_worth_a_remark():
    @workflow.defn
    async def forgetful() -> None:
        async def fail() -> None:
            raise ValueError("unheard")

        asyncio.create_task(fail())  # noqa: RUF006 - forgotten on purpose
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await workflow.sleep(1)

    run = Twin(forgetful)
    run.start()
    assert run.live.remarks == ["nobody awaited a task that failed with ValueError: unheard"]
