"""A client survives fork: parent and child go on with connections of their own."""

import os

import pytest

from orchestrator import workflow
from orchestrator.client import Client
from orchestrator.errors import ResultTimeout


@workflow.defn
async def forks_tick() -> None: ...


def in_child(act):
    """Run in a forked child; its exit code."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            act()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_starts_and_waits_and_so_does_its_parent(database_url, store, valkey, hand):
    with Client(database_url, valkey.url) as client:
        handle = client.start_workflow(forks_tick, id="before")
        with pytest.raises(ResultTimeout):
            handle.result(timeout=0.01)  # the waiter's thread runs as we fork

        def act():
            client.start_workflow(forks_tick, id="in-child")
            with pytest.raises(ResultTimeout):
                handle.result(timeout=0.05)
            client.close()

        assert in_child(act) == 0
        client.start_workflow(forks_tick, id="after")
        assert {run.workflow_id for run in client.list_workflows()} == {"before", "in-child", "after"}
        for run in hand.claim("forks_tick"):
            hand.complete(run)
        assert handle.result(timeout=10) is None
