"""Where agents enter Celery's worker; law: an agent's queues are not consumed before it is ready, and the engine is drained before it leaves.

`install` is what `orchestrator.celery` calls in every worker. `AgentStep` begins an `AgentHost` in a worker that has an agent of its own,
and in one on the queue `fleet`. Remote control (`workers.orders`) speaks to it.
"""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery, bootsteps, signals
from celery.concurrency.thread import TaskPool as ThreadsPool

from orchestrator.celery import orchestrator_of, refuse
from orchestrator.dispatch import AGENT_QUEUES
from orchestrator.errors import SettingsError
from workers import agent_log, orders, steps
from workers.actions import act
from workers.agent_host import AgentHost
from workers.consumer import FleetConsumer, strategy_hooks
from workers.hosted import HOSTED
from workers.intake import TASK, Intake
from workers.pool import FleetPool
from workers.steps import Presence

__all__ = ["AgentStep", "install", "orders"]

log = logging.getLogger("orchestrator.agents")

POOLS = (FleetPool, ThreadsPool)  # whose main process is free while works run


class AgentStep(bootsteps.StartStopStep):
    """Agents as a part of the worker's main process."""

    requires = (steps.EngineStep, "celery.worker.components:Pool")

    def __init__(self, worker: Any, **_: Any) -> None:  # noqa: ANN401 - a WorkController, whose bootsteps' attributes no stub knows
        worker.agents = None

    def include_if(self, worker: Any) -> bool:  # noqa: ANN401 - as above
        """In a worker with an agent of its own, and on the queue of the fleet; its own queues are not consumed before it is ready."""
        settings = orchestrator_of(worker.app).settings
        queues = worker.app.amqp.queues
        if settings.agent_id:
            if not issubclass(worker.pool_cls, POOLS):
                refuse(SettingsError("the worker of an agent must stay answerable: run it with our own pool, or with -P threads"))
            queues.deselect([name for name in queues.consume_from if name.startswith(AGENT_QUEUES)])
            return True
        return settings.fleet_queue in queues.consume_from and issubclass(worker.pool_cls, POOLS)

    def start(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """Begin to host."""
        host = AgentHost.present = worker.agents = AgentHost(worker, act)
        host.gpu.read()  # the first answer takes a moment
        engine = Presence.current()
        assert engine is not None, "the engine of these pools is in this process, and starts before"
        engine.on_renewed.append(host.renewed)
        if host.settings.fleet_queue in worker.app.amqp.queues.consume_from:
            host.keep()
        if host.settings.agent_id:
            host.prepare()

    def close(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """The worker is about to stop."""
        if worker.agents is not None:
            worker.agents.leave()

    def stop(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """Finish, then leave."""
        steps.leave(worker)
        if worker.agents is not None:
            worker.agents.close()
            if worker.agents.own is not None and not worker.agents.broken:
                worker.exitcode = os.EX_OK  # Celery takes Ctrl-C for a failure, but that is how people end an agent that they run
            AgentHost.present = worker.agents = None

    def terminate(self, worker: Any) -> None:  # noqa: ANN401 - as above
        """Leave at once."""
        Presence.drain_s = 0.0
        self.stop(worker)

    def info(self, worker: Any) -> dict[str, Any]:  # type: ignore[override] # noqa: ANN401 - the stub says None, Celery merges what comes
        """What `inspect stats` shows of agents."""
        return {"agents": {hosted.id: hosted.status for hosted in HOSTED.all()}}


def begin(**_: Any) -> None:  # noqa: ANN401 - signals add what they like
    """The worker hears remote control now: its own agent may come."""
    host = AgentHost.present
    if host is not None and host.settings.agent_id:
        host.act(host.begin)


def prepare_consumer(consumer: FleetConsumer) -> None:
    """On every broker connection: take envelopes beside the pool."""
    host = AgentHost.present
    if host is not None and TASK in consumer.strategies and consumer.letters is not None:
        host.intake = host.intake or Intake(consumer.app, host.works, consumer.letters)
        consumer.strategies[TASK] = host.intake.strategy(consumer)


def install(app: Celery) -> None:
    """Add our steps to an application's workers."""
    steps.install(app)
    app.steps["worker"].add(AgentStep)
    settings = orchestrator_of(app).settings
    if settings.agent_id:
        agent_log.SETTINGS[:] = [settings]
        signals.setup_logging.connect(agent_log.set_up, weak=False)


strategy_hooks.append(prepare_consumer)
signals.worker_ready.connect(begin, weak=False)
