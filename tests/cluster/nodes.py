"""Nodes for pytest-celery's clusters, made of processes of this machine; law: a test speaks to them as it would to containers.

pytest-celery wraps whatever it is given in its own nodes and asks of it what a container can do: its name, its status, its logs, to be
killed and to be restarted. A server of ours and a worker process can do all of that, and start in a tenth of the time.
"""

from __future__ import annotations

import signal as signals
from abc import ABC, abstractmethod

import celery
from pytest_celery import CeleryTestSetup

from orchestrator.development_servers import RabbitMQ
from orchestrator.servers import Valkey
from tests.e2e.processes import WAIT_MAX_S, Shop, answering, wait_until


class Box(ABC):
    """What a node asks of its container; `id` and `name` are those that its logs would show."""

    name: str

    @property
    @abstractmethod
    def id(self) -> str:
        """Its host name, for Celery."""

    @property
    @abstractmethod
    def status(self) -> str:
        """`running` or `exited`."""

    @abstractmethod
    def ready(self) -> bool:
        """Wait until it is."""

    @abstractmethod
    def kill(self, signal: str | int = "SIGKILL") -> None:
        """Signal it; returns when it is gone."""

    @abstractmethod
    def restart(self, timeout: float) -> None:
        """End it if it runs, and start it again as the same one."""

    @abstractmethod
    def logs(self) -> str:
        """All that it said."""

    def reload(self) -> None:
        """What is known of a process is asked for each time, so there is nothing to do."""
        return

    def teardown(self) -> None:
        """Whoever made the process ends it, so there is nothing to do."""
        return


class ServerBox(Box):
    """A broker, reached under one of its URLs."""

    def __init__(self, server: Valkey | RabbitMQ, url: str) -> None:
        self.name = server.name
        self.celeryconfig = {"url": url, "host_url": url}
        self._server = server

    @property
    def id(self) -> str:
        return str(self._server.pid)

    @property
    def status(self) -> str:
        return "running" if self._server.running else "exited"

    def ready(self) -> bool:
        """A server that has started answers."""
        return self._server.running

    def kill(self, signal: str | int = "SIGKILL") -> None:
        assert signal == "SIGKILL", "a server is killed, or stopped in order by restart"
        self._server.kill()

    def restart(self, timeout: float) -> None:
        self._server.restart()

    def logs(self) -> str:
        return (self._server.home / f"{self._server.name}.log").read_text(errors="replace")


class WorkerBox(Box):
    """A worker process of a shop; each restart is a new process under the same node name."""

    def __init__(self, shop: Shop, node: str) -> None:
        self.name = node
        self._shop = shop
        self._worker = shop.worker(node=node, wait=False)

    @property
    def id(self) -> str:
        return self.name.partition("@")[2]

    @property
    def status(self) -> str:
        return "running" if self._worker.alive else "exited"

    @property
    def pid(self) -> int:
        """Of the process of the moment."""
        return self._worker.process.pid

    def ready(self) -> bool:
        self._shop.await_ready(self._worker)
        return True

    def kill(self, signal: str | int = "SIGKILL") -> None:
        self._worker.signal(signals.Signals[signal] if isinstance(signal, str) else signals.Signals(signal))
        self._worker.process.wait(WAIT_MAX_S)

    def restart(self, timeout: float) -> None:
        if self._worker.alive:
            self._worker.stop(timeout)
        self._worker = self._shop.worker(node=self.name)

    def logs(self) -> str:
        return self._worker.text

    def version(self) -> str:
        """Of Celery."""
        return celery.__version__

    def log_level(self) -> str:
        """As the process was told."""
        return "info"

    def worker_name(self) -> str:
        """The node name before the @."""
        return self.name.partition("@")[0]

    def worker_queue(self) -> str:
        """The first queue that it serves."""
        return self._shop.settings.default_queue


def outlives_its_workers_and_its_broker(setup: CeleryTestSetup, shop: Shop) -> None:
    """A run that is on its way when its worker is killed and the broker restarts comes to its end, and both serve again."""
    assert setup.ready(control=True, docker=True)
    assert len(setup) == 1 + len(setup.worker_cluster)
    shop.beat()
    handle = shop.start("native_gated", "gate")
    pid = int(shop.await_note("gate", "started", "1")[0].rpartition("pid=")[2])
    (victim,) = (node for node in setup.worker_cluster if node.container.pid == pid)
    (survivor,) = (node for node in setup.worker_cluster if node is not victim)
    victim.kill()
    assert victim.container.status == "exited"
    setup.broker.restart()
    shop.open_gate("gate")
    assert handle.result(timeout=WAIT_MAX_S) == "gate"
    victim.restart()
    victim.assert_log_exists("ready.")
    survivor.assert_log_exists("Connection to broker lost")
    assert shop.call("add", 1, 2) == 3, "a Celery task, by message"
    everybody = {node.hostname() for node in setup.worker_cluster}
    wait_until(lambda: answering(setup.app) == everybody, f"{everybody} answer")
