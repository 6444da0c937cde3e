"""Workflows of the corpus: every construct of the language whose outcome does not depend on who ran it when."""

from __future__ import annotations

import asyncio

from orchestrator import workflow
from orchestrator.errors import ActivityError, ChildWorkflowError, MessageNotDelivered, WorkerLost, WorkflowAlreadyStarted
from orchestrator.workflow import ChildCancellationType, ParentClosePolicy, RetryPolicy
from tests.simulation import corpus_activities as acts
from tests.simulation.corpus_activities import SIDE_QUEUE, TASK

LOST = "a worker was lost too often"
FAST = RetryPolicy(initial_interval=0.1, maximum_interval=1.0)
PERSISTENT = RetryPolicy(initial_interval=0.1, maximum_interval=1.0, maximum_attempts=100)


class World:
    """What the author mends: a switch outside the workflow that code which is `stuck` looks at."""

    mended = True


def lost(error: ActivityError) -> bool:
    return isinstance(error.cause, WorkerLost)


@workflow.defn(name="sim.sequence")
async def sequence(steps: int) -> int:
    total = 0
    for step in range(steps):
        total = await workflow.execute_activity(acts.add, args=[total, step], retry_policy=FAST)
    return total


@workflow.defn(name="sim.fan")
async def fan(width: int) -> int:
    return sum(await asyncio.gather(*(workflow.start_activity(acts.add, args=[n, n], retry_policy=FAST) for n in range(width))))


@workflow.defn(name="sim.race")
async def race(limit_s: float) -> str:
    try:
        async with asyncio.timeout(limit_s):
            await workflow.execute_activity(acts.slow, 1, heartbeat_timeout=2.0, retry_policy=FAST)
    except TimeoutError:
        return "timer"
    except ActivityError as error:
        return "lost" if lost(error) else "timer"
    return "activity"


@workflow.defn(name="sim.collect")
class Collect:
    def __init__(self) -> None:
        self.items: list[int] = []

    @workflow.run
    async def run(self, wanted: int) -> list[int]:
        await workflow.wait_condition(lambda: len(self.items) >= wanted)
        return self.items

    @workflow.signal
    def put(self, item: int) -> None:
        self.items.append(item)

    @workflow.query
    def count(self) -> int:
        return len(self.items)


@workflow.defn(name="sim.handlers")
class Handlers:
    def __init__(self) -> None:
        self.total = 0
        self.seen = 0

    @workflow.run
    async def run(self, wanted: int) -> int:
        await workflow.wait_condition(lambda: self.seen >= wanted)
        await workflow.wait_condition(workflow.all_handlers_finished)
        return self.total

    @workflow.signal
    async def put(self, item: int) -> None:
        self.seen += 1
        value = await workflow.execute_activity(acts.add, args=[item, 0], retry_policy=FAST)
        self.total += value


@workflow.defn(name="sim.retrying")
async def retrying(failures: int) -> str:
    attempt = await workflow.execute_activity(acts.flaky, failures, retry_policy=PERSISTENT)
    return "succeeded" if attempt > failures else "too early"


@workflow.defn(name="sim.gives_up")
async def gives_up(attempts: int) -> str:
    try:
        await workflow.execute_activity(acts.hopeless, retry_policy=RetryPolicy(initial_interval=0.1, maximum_attempts=attempts))
    except ActivityError:
        return "gave up"
    return "impossible"


@workflow.defn(name="sim.at_most_once")
async def at_most_once(value: int) -> int:
    try:
        return await workflow.execute_activity(acts.once, value, retry_policy=RetryPolicy(maximum_attempts=1))
    except ActivityError as error:
        return -1 if lost(error) else -2


@workflow.defn(name="sim.canceled")
async def canceled(kind: str) -> str:
    try:
        if kind == "timer":
            await workflow.sleep(10_000)
        elif kind == "wait":
            try:
                await workflow.execute_activity(acts.slow, 1, heartbeat_timeout=2.0, cancellation_type="wait_cancellation_completed")
            except ActivityError:
                workflow.logger.info("it may have been too late, or out of order")
            if workflow.cancellation_reason() is not None:
                raise asyncio.CancelledError
            await workflow.sleep(10_000)
        elif kind == "try":
            await workflow.execute_activity(acts.stubborn, 1, cancellation_type="try_cancel")
            await workflow.sleep(10_000)
        else:
            await workflow.execute_activity(acts.stubborn, 1, cancellation_type="abandon")
            await workflow.sleep(10_000)
    finally:
        await workflow.execute_activity(acts.add, args=[1, 1], retry_policy=FAST)
    return "impossible"


@workflow.defn(name="sim.again")
async def again(left: int, total: int) -> int:
    total = await workflow.execute_activity(acts.add, args=[total, left], retry_policy=FAST)
    if left > 1:
        workflow.continue_as_new(args=[left - 1, total])
    return total


@workflow.defn(name="sim.endless")
async def endless() -> None:
    await asyncio.gather(workflow.sleep(10_000), workflow.execute_activity(acts.slow, 1, heartbeat_timeout=2.0))
    await workflow.sleep(10_000)


@workflow.defn(name="sim.elsewhere")
async def elsewhere(value: int) -> int:
    here = await workflow.execute_activity(acts.add, args=[value, 1], retry_policy=FAST)
    return await workflow.execute_activity(acts.add, args=[here, 1], queue=SIDE_QUEUE, retry_policy=FAST)


@workflow.defn(name="sim.silent_once")
async def silent_once(value: int, heartbeat: bool) -> int:
    if heartbeat:
        return await workflow.execute_activity(acts.silent, value, heartbeat_timeout=1.0, retry_policy=FAST)
    return await workflow.execute_activity(acts.silent, value, start_to_close_timeout=2.0, retry_policy=FAST)


@workflow.defn(name="sim.poisoned")
async def poisoned() -> str:
    try:
        await workflow.execute_activity(acts.poison, retry_policy=FAST)
    except ActivityError as error:
        return "set aside" if lost(error) else "otherwise"
    return "impossible"


@workflow.defn(name="sim.tasks")
async def tasks(value: int) -> int:
    first = await workflow.execute_activity(TASK, args=[value, 2])
    return int(await workflow.execute_activity(TASK, args=[first, 2], start_to_close_timeout=30.0, retry_policy=FAST))


@workflow.defn(name="sim.naps")
async def naps(durations: list[float]) -> list[bool]:
    """Whether no sleep was too short."""
    begun = workflow.time()

    async def nap(seconds: float) -> bool:
        await workflow.sleep(seconds)
        return workflow.time() - begun >= seconds - 0.001

    together = await asyncio.gather(*(nap(seconds) for seconds in durations))
    for seconds in durations:
        begun = workflow.time()
        together.append(await nap(seconds))
    return together


@workflow.defn(name="sim.unwritable")
async def unwritable(value: int) -> int:
    half = "" if World.mended else "half a character: \ud800"
    return await workflow.execute_activity(acts.add, args=[value, 1], retry_policy=FAST, summary=half)


@workflow.defn(name="sim.stuck", on_exception="retry_turn")
async def stuck(value: int) -> int:
    value = await workflow.execute_activity(acts.add, args=[value, 1], retry_policy=FAST)
    if not World.mended:
        raise RuntimeError("to be mended")
    return await workflow.execute_activity(acts.add, args=[value, 1], retry_policy=FAST)


@workflow.defn(name="sim.family")
async def family(width: int, where: list[str | None]) -> int:
    """Children on several queues; each chain has an end of its own."""
    kinds = (sequence, fan, elsewhere)
    children = [
        workflow.execute_child_workflow(kinds[n % 3], n % 3 + 1, queue=where[n % len(where)], id=f"{workflow.info().workflow_id}/{n}")
        for n in range(width)
    ]
    children.append(workflow.execute_child_workflow(again, args=[3, 0], id=f"{workflow.info().workflow_id}/again"))
    return sum(await asyncio.gather(*children))


@workflow.defn(name="sim.conversation")
async def conversation(words: int) -> list[int]:
    """Signals to a child, one after the other and all at once: none is lost, none comes twice, those in a row stay in order."""
    child = await workflow.start_child_workflow(Collect.run, 2 * words, queue=SIDE_QUEUE, id=f"{workflow.info().workflow_id}/listener")
    for word in range(words):
        await child.signal(Collect.put, word)
    await asyncio.gather(*(workflow.get_external_workflow_handle(child.id).signal(Collect.put, words + word) for word in range(words)))
    heard = await child
    try:
        await child.signal(Collect.put, -1)
    except MessageNotDelivered:
        return heard
    return []


@workflow.defn(name="sim.ping")
class Ping:
    """Two of these signal each other in turns."""

    def __init__(self) -> None:
        self.balls = 0

    @workflow.run
    async def run(self, partner: str | None, rounds: int) -> int:
        child = None
        if partner is None:
            partner = f"{workflow.info().workflow_id}/pong"
            child = await workflow.start_child_workflow(Ping.run, args=[workflow.info().workflow_id, rounds], id=partner, queue=SIDE_QUEUE)
            self.balls = 1
        for _ in range(rounds):
            await workflow.wait_condition(lambda: self.balls > 0)
            self.balls -= 1
            await workflow.get_external_workflow_handle(partner).signal(Ping.ball)
        return rounds if child is None else await child

    @workflow.signal
    def ball(self) -> None:
        self.balls += 1


@workflow.defn(name="sim.ward")
class Ward:
    """Waits to be told to go, or cancelled; cleans up."""

    def __init__(self) -> None:
        self.released = False

    @workflow.run
    async def run(self) -> str:
        try:
            await workflow.wait_condition(lambda: self.released)
        except asyncio.CancelledError:
            await workflow.execute_activity(acts.add, args=[1, 1], retry_policy=FAST)
            raise
        return "released"

    @workflow.signal
    def release(self) -> None:
        self.released = True


@workflow.defn(name="sim.household")
class Household:
    """A child with children, one of each policy; what becomes of them is told by how the head ends."""

    @workflow.run
    async def run(self, depth: int, how: str) -> str:
        me = workflow.info().workflow_id
        policies: tuple[ParentClosePolicy, ...] = ("terminate", "request_cancel", "abandon")
        for policy in policies:
            limit_s = 30.0 if policy == "abandon" else None
            await workflow.start_child_workflow(
                Ward.run,
                id=f"{me}/{policy}",
                parent_close_policy=policy,
                queue=SIDE_QUEUE,
                run_timeout=limit_s,
            )
        if depth:
            return await workflow.execute_child_workflow(Household.run, args=[depth - 1, "wait"], id=f"{me}/household")
        if how == "wait":
            await workflow.sleep(10_000)
        return how


@workflow.defn(name="sim.canceled_family")
async def canceled_family(how: ChildCancellationType) -> str:
    ward = f"{workflow.info().workflow_id}/ward"
    try:
        await workflow.execute_child_workflow(Ward.run, id=ward, queue=SIDE_QUEUE, cancellation_type=how)
    except ChildWorkflowError as error:
        if not workflow.is_cancellation(error):
            return "otherwise"
        raise
    return "impossible"


@workflow.defn(name="sim.twice")
async def twice() -> list[str]:
    """The same id for two children at once: one of them cannot be."""

    async def one() -> str:
        try:
            return str(await workflow.execute_child_workflow(sequence, 3, id=f"{workflow.info().workflow_id}/same"))
        except WorkflowAlreadyStarted:
            return "taken"

    return sorted(await asyncio.gather(one(), one()))


@workflow.defn(name="sim.restless")
class Restless:
    """Continues as new with every word it hears."""

    def __init__(self) -> None:
        self.heard: list[int] = []

    @workflow.run
    async def run(self, wanted: int, before: list[int]) -> list[int]:
        await workflow.wait_condition(lambda: bool(self.heard))
        total = before + self.heard
        if len(total) < wanted:
            workflow.continue_as_new(args=[wanted, total])
        return total

    @workflow.signal
    def put(self, item: int) -> None:
        self.heard.append(item)


@workflow.defn(name="sim.pestering")
async def pestering(words: int, more: int) -> list[int] | str:
    """Signals to a child that is never the same run for long; with `more` it waits for words that never come, and is cancelled."""
    child = await workflow.start_child_workflow(Restless.run, args=[words + more, []], id=f"{workflow.info().workflow_id}/restless")
    await asyncio.gather(*(child.signal(Restless.put, word) for word in range(words)))
    for word in range(more - 1):
        await child.signal(Restless.put, words + word)
    if more:
        child.cancel("enough")
    try:
        return sorted(await child)
    except ChildWorkflowError as error:
        return "cancelled" if workflow.is_cancellation(error) else "otherwise"
