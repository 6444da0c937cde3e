"""The asynchronous client: the same promises, and waiting occupies no thread."""

import asyncio
import threading
from dataclasses import replace

import pytest
import sqlalchemy
from sqlalchemy.orm import Session

from orchestrator import workflow
from orchestrator.async_client import THREADS_MAX, AsyncClient
from orchestrator.client import StartRequest
from orchestrator.errors import PayloadMismatch, QueryFailed, ResultTimeout, WorkflowFailure, WorkflowNotFound
from orchestrator.store import control


@workflow.defn(name="asynchronous.Box")
class Box:
    @workflow.run
    async def run(self, size: int) -> int:
        return size

    @workflow.signal
    def put(self, thing: int) -> None: ...

    @workflow.query
    def count(self) -> int:
        return 0


@pytest.fixture
def run(database_url, store, bell):
    """Run a coroutine function with an open client."""

    def run(body):
        async def whole():
            async with AsyncClient(database_url, "memory://", bell=bell) as client:
                await asyncio.wait_for(body(client), 60)

        asyncio.run(whole())

    return run


def test_a_run_is_started_spoken_to_awaited_and_looked_at(run, hand):
    async def body(client):
        handle = await client.start_workflow(Box.run, 3, id="x")
        await handle.signal(Box.put, 1)
        waiting = asyncio.create_task(handle.result(timeout=20))
        await asyncio.to_thread(lambda: hand.complete(hand.claim("asynchronous.Box")[0], 3))
        assert await waiting == 3
        assert (await handle.describe()).status == "completed"
        assert len(await handle.history()) == 1
        assert await client.get_handle("x", workflow=Box.run).result() == 3
        assert [found.workflow_id async for found in client.list_workflows("type=asynchronous.Box")] == ["x"]
        assert await client.count_workflows() == 1

    run(body)


def test_more_wait_than_there_are_threads(run, hand):
    async def body(client):
        requests = [StartRequest(Box.run, args=[n]) for n in range(30)]
        handles = await client.start_workflows(requests)
        waiting = [asyncio.create_task(handle.result(timeout=30)) for handle in handles]
        executed = asyncio.create_task(client.execute_workflow(Box.run, 99, id="last"))
        assert (await handles[0].describe()).status == "running", "the threads are free"
        closed = 0
        while closed < 31:
            for claimed in await asyncio.to_thread(hand.claim, "asynchronous.Box"):
                size = claimed.inbox[0].arrival.args[0]
                await asyncio.to_thread(hand.complete, claimed, size)
                closed += 1
        assert await asyncio.gather(*waiting) == list(range(30))
        assert await executed == 99
        assert [thread.name.startswith("orchestrator-client") for thread in threading.enumerate()].count(True) <= THREADS_MAX

    run(body)


def test_errors_are_those_of_the_client(run, hand):
    async def body(client):
        with pytest.raises(PayloadMismatch):
            await client.start_workflow(Box.run, "three")
        with pytest.raises(WorkflowNotFound):
            await client.get_handle("nowhere").result()
        handle = await client.start_workflow(Box.run, 3, id="x")
        with pytest.raises(ResultTimeout):
            await handle.result(timeout=0.02)
        with pytest.raises(QueryFailed, match="no worker"):
            await handle.query(Box.count, timeout=0.02)
        waiting = asyncio.create_task(handle.result())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await handle.terminate("enough")
        with pytest.raises(WorkflowFailure, match="enough"):
            await handle.result()

    run(body)


def test_a_query_is_answered(run, store, bell):
    def answer(queue):
        with store.transaction() as tx:
            for question in control.questions(tx, [queue], ["asynchronous.Box"], 10):
                control.answer(tx, [replace(question, answer=7, answered=True)])

    async def body(client):
        handle = await client.start_workflow(Box.run, 3)
        bell.ring = answer
        assert await handle.query(Box.count) == 7

    run(body)


def test_a_session_is_used_in_its_own_thread(run, database_url, bell):
    engine = sqlalchemy.create_engine(database_url)

    async def body(client):
        with Session(engine) as session:
            await client.start_workflow(Box.run, 3, id="kept", session=session)
            session.commit()
        with Session(engine) as session:
            await client.start_workflow(Box.run, 3, id="dropped", session=session)
        assert [found.workflow_id async for found in client.list_workflows()] == ["kept"]

    run(body)
    assert bell.rung == ["default"]
    engine.dispose()
