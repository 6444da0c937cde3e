"""Activities as authors see them: results, retries, the four timeouts, heartbeats, cancellation."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel

from orchestrator import activity, workflow
from orchestrator.core.definitions import ACTIVITIES
from orchestrator.errors import ActivityError, ApplicationError, CancelledError, WorkerLost, WorkflowFailure
from orchestrator.store import workers
from schemas.runs import Status, WorkerRow
from tests.engine.conftest import WAIT_MAX_S, House
from workers.host import Host

FAST = workflow.RetryPolicy(initial_interval=0.01, backoff_coefficient=1.0)


class Order(BaseModel):
    id: UUID
    total: float


@dataclass(frozen=True)
class Receipt:
    order: Order
    paid: bool


def test_typed_arguments_and_results_reach_sync_and_async_activities(house: House) -> None:
    @activity.defn(name="engine.price")
    def price(order: Order, factor: float) -> Order:
        return order.model_copy(update={"total": order.total * factor})

    @activity.defn
    async def charge(order: Order) -> Receipt:
        return Receipt(order, paid=True)

    @workflow.defn
    async def sell(order: Order) -> Receipt:
        priced = await workflow.execute_activity(price, args=[order, 2.0])
        assert isinstance(priced, Order)
        return await workflow.execute_activity(charge, priced)

    house.worker()
    order = Order(id=UUID(int=7), total=10)
    receipt = house.run(sell, order)
    assert receipt == Receipt(Order(id=UUID(int=7), total=20), paid=True)


@pytest.mark.req("DC-25")
@pytest.mark.req("DC-23")
def test_a_failing_activity_is_tried_again_until_it_succeeds_and_history_shows_it_once(house: House) -> None:
    attempts: list[int] = []

    @activity.defn
    def flaky() -> int:
        attempts.append(activity.info().attempt)
        if len(attempts) < 3:
            raise OSError("not yet")
        return len(attempts)

    @workflow.defn
    async def persist() -> int:
        return await workflow.execute_activity(flaky, retry_policy=FAST)

    house.worker()
    handle = house.client.start_workflow(persist)
    assert handle.result(timeout=WAIT_MAX_S) == 3
    assert attempts == [1, 2, 3]
    arrivals = [event.kind for turn in handle.history() for event in turn.arrivals]
    assert arrivals == ["run_started", "activity_completed"]


@pytest.mark.parametrize(
    "policy",
    [workflow.RetryPolicy(maximum_attempts=2, initial_interval=0.01), workflow.RetryPolicy(non_retryable_error_types=("OSError",))],
)
@pytest.mark.req("DC-25")
def test_retries_end_where_the_policy_says_and_the_cause_is_kept(house: House, policy: workflow.RetryPolicy) -> None:
    seen: list[ActivityError] = []

    @activity.defn
    def broken() -> None:
        raise OSError("disk on fire")

    @workflow.defn
    async def give_up() -> str:
        try:
            await workflow.execute_activity(broken, retry_policy=policy)
        except ActivityError as error:
            seen.append(error)
            return error.retry_state
        return "?"

    house.worker()
    state = house.run(give_up)
    assert state == ("maximum_attempts_reached" if policy.maximum_attempts else "non_retryable_failure")
    assert isinstance(seen[0].cause, ApplicationError)
    assert seen[0].cause.type == "OSError"
    assert "disk on fire" in str(seen[0].cause)


def test_an_application_error_can_forbid_retries_and_choose_the_next_delay(house: House) -> None:
    attempts: list[int] = []

    @activity.defn
    def moody() -> None:
        attempts.append(1)
        if len(attempts) == 1:
            raise ApplicationError("soon", next_retry_delay_s=0.0)
        raise ApplicationError("never", {"code": 7}, type="Final", non_retryable=True)

    @workflow.defn
    async def ask() -> list[object]:
        try:
            await workflow.execute_activity(moody, retry_policy=workflow.RetryPolicy(initial_interval=3600))
        except ActivityError as error:
            return [getattr(error.cause, "type", None), *getattr(error.cause, "details", ())]
        return []

    house.worker()
    assert house.run(ask) == ["Final", {"code": 7}]
    assert len(attempts) == 2


@pytest.mark.req("DC-25")
def test_start_to_close_ends_an_attempt_and_the_next_one_may_succeed(house: House) -> None:
    stuck = threading.Event()
    attempts: list[int] = []

    @activity.defn
    def slow() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            stuck.wait(WAIT_MAX_S)
        return "done"

    @workflow.defn
    async def hurry() -> str:
        return await workflow.execute_activity(slow, start_to_close_timeout=0.1, retry_policy=FAST)

    house.worker()
    assert house.run(hurry) == "done"
    stuck.set()
    assert len(attempts) == 2


def _timeout_of(house: House, **options: Any) -> tuple[str, str]:
    forever = threading.Event()

    @activity.defn
    def hang() -> None:
        forever.wait(WAIT_MAX_S)

    @workflow.defn
    async def wait() -> list[str]:
        try:
            await workflow.execute_activity(hang, **options)
        except ActivityError as error:
            return [getattr(error.cause, "type", ""), error.retry_state]
        return []

    house.worker()
    handle = house.client.start_workflow(wait)
    house.until(lambda: handle.describe().status is not Status.RUNNING)
    forever.set()
    kind, state = handle.result(timeout=WAIT_MAX_S)
    return kind, state


def test_schedule_to_close_covers_all_attempts(house: House) -> None:
    assert _timeout_of(house, schedule_to_close_timeout=0.2, start_to_close_timeout=0.15, retry_policy=FAST) == (
        "schedule_to_close",
        "timeout",
    )


def test_schedule_to_start_ends_the_wait_for_a_worker(house: House) -> None:
    assert _timeout_of(house, schedule_to_start_timeout=timedelta(milliseconds=100), queue="nobody") == ("schedule_to_start", "timeout")


@pytest.mark.req("DC-25")
def test_silence_beyond_the_heartbeat_timeout_ends_an_attempt_and_details_reach_the_next_one(house: House) -> None:
    silent = threading.Event()
    found: list[tuple[object, ...]] = []

    @activity.defn
    def walk() -> str:
        found.append(activity.info().heartbeat_details)
        if len(found) == 1:
            activity.heartbeat("mile", 3)
            silent.wait(WAIT_MAX_S)
        return "arrived"

    @workflow.defn
    async def journey() -> str:
        return await workflow.execute_activity(walk, heartbeat_timeout=0.3, retry_policy=FAST)

    house.worker()
    assert house.run(journey) == "arrived"
    silent.set()
    assert found == [(), ("mile", 3)]


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_cancelled_run_reaches_its_activity_with_the_heartbeat_and_waits_for_its_end(house: House, kind: str) -> None:
    begun = threading.Event()
    ended: list[str] = []

    @activity.defn
    def sync() -> None:
        begun.set()
        while True:
            try:
                activity.heartbeat()
            except CancelledError:
                ended.append("sync")
                raise

    @activity.defn(name="async")
    async def not_sync() -> None:
        begun.set()
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            ended.append("async")
            raise

    @workflow.defn
    async def patient(which: str) -> None:
        await workflow.execute_activity(which, heartbeat_timeout=5, cancellation_type="wait_cancellation_completed")

    house.worker()
    handle = house.client.start_workflow(patient, kind)
    assert begun.wait(WAIT_MAX_S)
    handle.cancel("enough")
    with pytest.raises(WorkflowFailure) as caught:
        handle.result(timeout=WAIT_MAX_S)
    assert caught.value.status == "canceled"
    assert ended == [kind]


def test_cleanup_after_a_cancellation_may_run_activities(house: House) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    @activity.defn
    async def hold() -> None:
        begun.set()
        await asyncio.sleep(WAIT_MAX_S)

    @activity.defn
    def clean() -> None:
        cleaned.set()

    @workflow.defn
    async def tidy() -> None:
        try:
            await workflow.execute_activity(hold)
        finally:
            await workflow.execute_activity(clean)

    house.worker()
    handle = house.client.start_workflow(tidy)
    assert begun.wait(WAIT_MAX_S)
    handle.cancel()
    with pytest.raises(WorkflowFailure, match="cancel"):
        handle.result(timeout=WAIT_MAX_S)
    assert cleaned.is_set()
    assert handle.describe().status is Status.CANCELED


def test_an_activity_runs_where_its_queue_is_served(house: House) -> None:
    where: list[str] = []

    @activity.defn
    def place() -> str:
        where.append(activity.info().queue)
        return activity.info().queue

    @workflow.defn
    async def travel() -> list[str]:
        return [await workflow.execute_activity(place), await workflow.execute_activity(place, queue="far")]

    house.worker()
    house.worker("far")
    assert house.run(travel) == ["default", "far"]


def test_a_thousand_parallel_activities_all_come_back(house: House) -> None:
    @activity.defn
    async def square(n: int) -> int:
        return n * n

    @activity.defn
    def cube(n: int) -> int:
        return n * n * n

    @workflow.defn
    async def sums() -> int:
        squares = [workflow.start_activity(square, n) for n in range(500)]
        cubes = [workflow.start_activity(cube, n) for n in range(500)]
        return sum(await asyncio.gather(*squares, *cubes))

    house.worker(threads=2)
    assert house.run(sums) == sum(n * n + n * n * n for n in range(500))


def test_an_activity_of_an_unknown_type_waits_for_a_worker_that_knows_it(house: House) -> None:
    @workflow.defn
    async def hopeful() -> str:
        return str(await workflow.execute_activity("invented_later"))

    house.worker()
    handle = house.client.start_workflow(hopeful)
    house.until(handle.pending_activities)

    @activity.defn
    def invented_later() -> str:
        return "here"

    assert "invented_later" in ACTIVITIES
    house.ring("default")
    assert handle.result(timeout=WAIT_MAX_S) == "here"


def test_what_cannot_be_carried_fails_the_activity_for_good_and_says_what(house: House) -> None:
    @activity.defn
    def secretive() -> object:
        return threading.Lock()

    @activity.defn
    def strict(number: int) -> int:
        return number

    @workflow.defn
    async def careless() -> list[str]:
        messages = []
        for call in (workflow.start_activity(secretive), workflow.start_activity("strict", "seven")):
            try:
                await call
            except ActivityError as error:
                messages.append(str(error.cause))
        return messages

    house.worker()
    unserialisable, mismatch = house.run(careless)
    assert "secretive" in unserialisable
    assert "number" in mismatch


def _lose(house: House, host: Host) -> None:
    """The worker's lease is over: others may take its work."""
    with house.store.transaction(purpose="test") as tx:
        workers.extend(tx, host.engine.worker_id, -1.0)
    house.tick()


def test_an_activity_that_may_run_once_is_not_repeated_when_its_worker_is_lost(house: House) -> None:
    begun, release = threading.Event(), threading.Event()
    runs: list[int] = []

    @activity.defn
    def once() -> None:
        runs.append(1)
        begun.set()
        release.wait(WAIT_MAX_S)

    @workflow.defn
    async def careful() -> str:
        try:
            await workflow.execute_activity(once, retry_policy=workflow.RetryPolicy(maximum_attempts=1))
        except ActivityError as error:
            return type(error.cause).__name__
        return "?"

    host = house.worker(neighbours_s=3600.0)
    handle = house.client.start_workflow(careful)
    assert begun.wait(WAIT_MAX_S)
    _lose(house, host)
    assert handle.result(timeout=WAIT_MAX_S) == WorkerLost.__name__
    release.set()
    assert runs == [1]


def test_an_activity_that_was_running_in_three_workers_as_they_died_becomes_a_dead_letter(house: House) -> None:
    release = threading.Event()
    begun: list[threading.Event] = [threading.Event() for _ in range(3)]
    runs: list[int] = []

    @activity.defn
    def killer() -> None:
        runs.append(1)
        begun[len(runs) - 1].set()
        release.wait(WAIT_MAX_S)

    @workflow.defn
    async def victim() -> str:
        try:
            await workflow.execute_activity(killer)
        except ActivityError as error:
            return str(error.cause)
        return "?"

    handle = house.client.start_workflow(victim)
    for lost in range(3):
        host = house.worker(neighbours_s=3600.0)  # it gives no further sign of life
        assert begun[lost].wait(WAIT_MAX_S)
        host.engine.draining = True
        _lose(house, host)
    house.worker()
    assert "dead letter" in handle.result(timeout=WAIT_MAX_S)
    release.set()
    assert len(runs) == 3


def test_a_worker_that_finishes_what_it_has_says_so_until_it_is_gone(house: House) -> None:
    begun, release = threading.Event(), threading.Event()

    @activity.defn
    def long() -> str:
        begun.set()
        release.wait(WAIT_MAX_S)
        return "done"

    @workflow.defn
    async def wait() -> str:
        return await workflow.execute_activity(long)

    leaver = house.worker()
    handle = house.client.start_workflow(wait)
    assert begun.wait(WAIT_MAX_S)
    stopping = threading.Thread(target=leaver.stop, kwargs={"drain_s": WAIT_MAX_S})
    stopping.start()
    house.until(lambda: [row.stopping for row in _workers(house)] == [True])
    house.worker()
    release.set()
    assert handle.result(timeout=WAIT_MAX_S) == "done"
    stopping.join(WAIT_MAX_S)
    house.until(lambda: [row.stopping for row in _workers(house)] == [False])


def _workers(house: House) -> list[WorkerRow]:
    with house.store.transaction(readonly=True) as tx:
        return workers.list_workers(tx)
