"""Activities: asked for once, typed both ways, and cancelled in two phases."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import pytest
from celery import shared_task

from orchestrator import activity, workflow
from orchestrator.errors import ActivityError, ApplicationError, InvalidArgument, PayloadMismatch, PayloadNotSerializable
from orchestrator.workflow import RetryPolicy
from schemas.history import ActivityCancelRequested, ActivityScheduled
from tests.core.twin import Twin, brief, cancel, canceled, done, failed, fired


@dataclass
class Order:
    id: int
    email: str | None = None


@activity.defn
def price(order: Order) -> float:
    return order.id * 1.5


@activity.defn
async def ship(order: Order, how: str = "post") -> Order:
    return order


@shared_task(name="shop.send_mail")
def send_mail(to: str, *, text: str = "") -> str:
    return to + text


def asked(run: Twin, *commands: Any) -> ActivityScheduled:
    (command,) = commands or run.history[-1].commands
    assert isinstance(command, ActivityScheduled)
    return command


def test_an_activity_is_called_by_its_function_with_typed_arguments_and_result():
    @workflow.defn
    async def buy() -> str:
        shipped = await workflow.execute_activity(ship, args=[Order(7), "air"])
        assert isinstance(shipped, Order)
        return f"{shipped.id} for {await workflow.execute_activity(price, shipped):.2f}"

    run = Twin(buy)
    run.start()
    assert asked(run) == ActivityScheduled(1, "1", "ship", ({"id": 7, "email": None}, "air"))
    run.turn(done(1, Order(8)))
    run.turn(done(2, 12))
    assert run.result == "8 for 12.00"


def test_every_option_of_a_call_reaches_the_command():
    retry = RetryPolicy(maximum_attempts=3)

    @workflow.defn
    async def options() -> None:
        await workflow.execute_activity(
            price,
            Order(1),
            queue="gpu",
            schedule_to_start_timeout=1,
            start_to_close_timeout=timedelta(minutes=1),
            schedule_to_close_timeout=3.5,
            heartbeat_timeout=4,
            retry_policy=retry,
            activity_id="the-one",
            summary="expensive",
            priority=2,
        )

    run = Twin(options)
    run.start()
    assert asked(run) == ActivityScheduled(
        1,
        "the-one",
        "price",
        ({"id": 1, "email": None},),
        queue="gpu",
        schedule_to_start_s=1.0,
        start_to_close_s=60.0,
        schedule_to_close_s=3.5,
        heartbeat_s=4.0,
        retry=retry,
        summary="expensive",
        priority=2,
    )


def test_an_activity_called_by_name_gives_plain_json_or_the_type_that_is_asked_for():
    @workflow.defn
    async def by_name() -> list[object]:
        plain = await workflow.execute_activity("elsewhere", None)
        typed = await workflow.execute_activity("elsewhere", result_type=Order)
        return [plain, typed.id]

    run = Twin(by_name)
    run.start()
    assert asked(run).args == (None,)
    run.turn(done(1, {"id": 1}))
    assert asked(run).args == ()
    run.turn(done(2, {"id": 2}))
    assert run.result == [{"id": 1}, 2]


def test_a_celery_task_is_an_activity_as_it_stands():
    @workflow.defn
    async def mail() -> str:
        return str(await workflow.execute_activity(send_mail, "ada@example.org", kwargs={"text": "hi"}, queue="mail"))

    run = Twin(mail)
    run.start()
    assert asked(run) == ActivityScheduled(1, "1", "shop.send_mail", ("ada@example.org",), {"text": "hi"}, "mail", task=True)
    run.turn(done(1, "sent"))
    assert run.result == "sent"


def test_a_failed_activity_raises_its_cause_and_says_why_it_was_not_tried_again():
    @workflow.defn
    async def careful() -> list[str]:
        try:
            await workflow.execute_activity(price, Order(1))
        except ActivityError as error:
            cause = cast("ApplicationError", error.cause)
            return [error.activity_type, error.activity_id, error.retry_state, cause.type, cause.message, type(cause).__name__]
        return []

    run = Twin(careful)
    run.start()
    run.turn(failed(1, "no such order"))
    assert run.result == ["price", "1", "non_retryable_failure", "ValueError", "no such order", "ApplicationError"]


def test_a_result_of_the_wrong_type_is_an_error_that_names_the_activity():
    @workflow.defn
    async def misled() -> str:
        try:
            await workflow.execute_activity(price, Order(1))
        except PayloadMismatch as error:
            return error.message
        return ""

    run = Twin(misled)
    run.start()
    run.turn(done(1, "cheap"))
    assert "the result of activity 'price'" in run.result
    assert "'cheap'" in run.result


start: Any = workflow.start_activity  # what a type checker would not let pass


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: start(print), InvalidArgument, "is not an activity"),
        (lambda: start(42), InvalidArgument, "is not an activity"),
        (lambda: start(""), InvalidArgument, "must not be empty"),
        (lambda: start(price), PayloadMismatch, "0 argument"),
        (lambda: start(ship, args=[Order(1), "a", "b"]), PayloadMismatch, "3 argument"),
        (lambda: start(price, Order(1), args=[Order(1)]), InvalidArgument, "not both"),
        (lambda: start("x", args="abc"), InvalidArgument, "must be a list"),
        (lambda: start(price, object()), PayloadNotSerializable, "JSON form"),
        (lambda: start("x", start_to_close_timeout=-1), InvalidArgument, "start_to_close_timeout must be finite"),
        (lambda: start("x", heartbeat_timeout=float("nan")), InvalidArgument, "heartbeat_timeout must be finite"),
        (lambda: start("x", heartbeat_timeout="5"), InvalidArgument, "seconds or a timedelta, not str"),
        (lambda: start("x", queue=" "), InvalidArgument, "queue must not be empty"),
        (lambda: start("x", activity_id="a\nb"), InvalidArgument, "control character"),
        (lambda: start(price, "x", kwargs={"a": 1}), InvalidArgument, "kwargs are for Celery tasks"),
        (lambda: start("x", retry_policy={}), InvalidArgument, "must be a RetryPolicy"),
        (lambda: start("x", cancellation_type="maybe"), InvalidArgument, "cancellation_type must be one of"),
        (lambda: start("x", priority="high"), InvalidArgument, "priority must be a whole number"),
        (lambda: start("x", summary="s" * 401), InvalidArgument, "at most 400 characters"),
        (lambda: start("x", retries=3), TypeError, "no option retries"),
    ],
)
def test_a_wrong_call_is_told_at_the_call_and_asks_for_nothing(call, error, message):
    @workflow.defn
    async def wrong() -> str:
        with pytest.raises(error, match=message):
            call()
        return "told"

    run = Twin(wrong)
    assert brief(run.start()) == ["run_completed"]


def test_two_pending_activities_cannot_share_an_id():
    @workflow.defn
    async def twice() -> None:
        workflow.start_activity("x", activity_id="mine")
        with pytest.raises(InvalidArgument, match="already"):
            workflow.start_activity("y", activity_id="mine")

    assert brief(Twin(twice).start()) == ["run x #1", "run_completed"]


def cancels_with(cancellation_type: Any) -> Any:
    @workflow.defn
    async def cancels() -> list[object]:
        handle = workflow.start_activity("work", result_type=str, cancellation_type=cancellation_type)
        await workflow.sleep(1)
        handle.cancel()
        try:
            return ["result", await handle]
        except ActivityError as error:
            return ["error", workflow.is_cancellation(error), error.retry_state]

    run = Twin(cancels)
    assert brief(run.start()) == ["run work #1", "timer #2"]
    return run


def wake(run: Twin) -> Any:
    return run.turn(fired(2))


def test_try_cancel_asks_the_activity_and_moves_on_at_once():
    run = cancels_with("try_cancel")
    commands = wake(run)
    assert commands[0] == ActivityCancelRequested(1, wait=False)
    assert run.result == ["error", True, "cancel_requested"]


def test_abandon_moves_on_and_asks_nobody():
    run = cancels_with("abandon")
    assert brief(wake(run)) == ["run_completed"]
    assert run.result == ["error", True, "cancel_requested"]


def test_wait_cancellation_completed_waits_for_the_true_outcome_which_may_be_success():
    run = cancels_with("wait_cancellation_completed")
    assert wake(run) == (ActivityCancelRequested(1, wait=True),)
    run.turn(canceled(1))
    assert run.result == ["error", True, "cancel_requested"]
    run = cancels_with("wait_cancellation_completed")
    wake(run)
    run.turn(done(1, "made it"))
    assert run.result == ["result", "made it"]
    run = cancels_with("wait_cancellation_completed")
    wake(run)
    run.turn(failed(1, "broke on the way"))
    assert run.result == ["error", False, "non_retryable_failure"]


def test_an_activity_cancelled_before_it_left_the_turn_was_never_asked_for():
    @workflow.defn
    async def hasty(begun: bool) -> str:
        handle = workflow.start_activity("work", cancellation_type="wait_cancellation_completed")
        if begun:
            await asyncio.sleep(0)
        assert handle.cancel()
        try:
            await handle
        except ActivityError as error:
            return str(error.cause)
        return "no error"

    for begun in (True, False):
        run = Twin(hasty, begun)
        assert brief(run.start()) == ["run_completed"]
        assert run.result == "the activity was cancelled"


def test_a_cancellation_is_not_lost_when_the_activity_ends_in_the_same_moment():
    @workflow.defn
    async def waiter(by_handle: bool) -> str:
        if by_handle:
            await workflow.start_activity("work")
        else:
            await workflow.execute_activity("work")
        await workflow.sleep(10)
        return "not cancelled"

    for by_handle in (True, False):
        first = Twin(waiter, by_handle)
        first.start()
        assert brief(first.turn(cancel(), done(1))) == ["run_canceled"]
        second = Twin(waiter, by_handle)
        second.start()
        assert brief(second.turn(done(1), cancel())) == ["run_canceled"]


def test_one_cancellation_is_sent_however_often_it_is_asked_for():
    @workflow.defn
    async def nagging() -> str:
        handle = workflow.start_activity("work", result_type=str, cancellation_type="wait_cancellation_completed")
        await workflow.sleep(1)
        for _ in range(3):
            handle.cancel()
            await asyncio.sleep(0)
        return await handle

    run = Twin(nagging)
    run.start()
    assert brief(wake(run)) == ["cancel #1"]
    run.turn(done(1, "anyway"))
    assert run.result == "anyway"


def test_a_timeout_around_an_activity_cancels_it_and_the_activity_says_so():
    @workflow.defn
    async def bounded() -> str:
        try:
            async with asyncio.timeout(5):
                await workflow.execute_activity("slow")
        except ActivityError as error:
            task = asyncio.current_task()
            assert task is not None
            return f"{error.cause}, {task.cancelling()} pending"
        return "done"

    run = Twin(bounded)
    run.start()
    (timer,) = run.timers
    assert brief(run.turn(fired(timer)))[0] == f"cancel #{3 - timer}"
    assert run.result == "the activity was cancelled, 0 pending"


def test_a_late_result_of_an_activity_that_was_given_up_is_ignored():
    @workflow.defn
    async def moves_on() -> str:
        handle = workflow.start_activity("work")
        await workflow.sleep(1)
        handle.cancel()
        try:
            await handle
        except ActivityError:
            await workflow.sleep(5)
        return "went on"

    run = Twin(moves_on)
    run.start()
    assert brief(wake(run)) == ["cancel #1", "timer #3"]
    assert run.turn(done(1, "late"), canceled(1), failed(1)) == ()


def test_a_finished_handle_is_a_finished_task():
    @workflow.defn
    async def inspect() -> list[object]:
        handle = workflow.start_activity("work", result_type=int)
        await asyncio.wait([handle])
        return [handle.done(), handle.cancel(), handle.result()]

    run = Twin(inspect)
    run.start()
    run.turn(done(1, 5))
    assert run.result == [True, False, 5]
