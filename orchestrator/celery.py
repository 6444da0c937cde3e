"""The Celery application, ours or yours; law: what an application has set itself stays as it is, we only fill what was left open.

    celery -A orchestrator worker | beat | flower          # ours, from ORCHESTRATOR_… in the environment

    app = Celery("shop", broker="redis://…")               # yours
    Orchestrator(app, database="postgresql://…")

An adopted application gets our pool, consumer, beat scheduler and doorbell; how its tasks are acknowledged, serialised, routed and stored
remains its own affair. In our own application every task is an activity, so there the rules of the house hold for tasks as well.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, NoReturn
from weakref import WeakKeyDictionary

from celery import Celery, current_app, signals
from kombu.utils.url import maybe_sanitize_url

from orchestrator.client import Client
from orchestrator.clock import SYSTEM, Clock
from orchestrator.core.definitions import HABITS, WorkflowFunction
from orchestrator.core.payloads import PayloadCodec, PayloadConverter
from orchestrator.dispatch import DOORBELL, CeleryBroker, with_agent_queues
from orchestrator.errors import (
    BrokerUnavailable,
    DatabaseNotMigrated,
    DatabaseUnavailable,
    NonDeterministicCall,
    OrchestratorError,
    SettingsError,
)
from orchestrator.results import RunResult, result_of
from orchestrator.servers import valkey_socket
from orchestrator.settings import current, embedded_broker, embedded_database
from orchestrator.store import Store
from orchestrator.workflow import in_workflow
from schemas.settings import Settings

log = logging.getLogger("orchestrator.celery")

BROKER_ANSWER_MAX_S = 5  # how long a starting process waits for its broker, each time it asks
EMBEDDED_TRIES = 4
STEPS = "workers.agents"  # what a worker process imports to become one of ours; by name, because it stands above us

# The classes are names: Celery imports them in the process that needs them, and in no other.
PARTS: Mapping[str, Any] = {
    "worker_pool": "workers.pool:FleetPool",
    "worker_consumer": "workers.consumer:FleetConsumer",
    "beat_scheduler": "beat.scheduler:StoreScheduler",
    "broker_connection_retry_on_startup": True,
}

HOUSE: Mapping[str, Any] = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "task_ignore_result": True,  # results live in histories
    "task_acks_late": True,
    "task_reject_on_worker_lost": True,
    "task_create_missing_queues": True,
    "worker_prefetch_multiplier": 1,  # a message held back is work that no other worker may take
    "worker_cancel_long_running_tasks_on_connection_loss": True,  # the broker hands them to somebody else at that moment
    "worker_enable_remote_control": True,
    "worker_send_task_events": False,
}

# Of an agent's worker, whose node name its successor takes over: on RabbitMQ a frozen one must not keep the name for its own, and what it has
# received and not begun goes back to the queue when its connection has been silent twice as long.
AGENT: Mapping[str, Any] = {"control_queue_exclusive": False, "broker_heartbeat": 10.0}

# Without these a connection through which nothing comes any more is waited on for ever.
REDIS_OPTIONS: Mapping[str, Any] = {
    "socket_timeout": 10.0,
    "socket_connect_timeout": 4.0,
    "socket_keepalive": True,
    "health_check_interval": 25,
}


def _nobody(queue: str) -> None:
    log.debug("the doorbell of %s rings in a process that takes no turns", queue)


class Orchestrator:
    """What we add to a Celery application, and the way from the application to the store, the broker and the settings.

    `database` wins over `settings`, which win over the environment. The broker is that of the application; if it names none, that of the
    settings. `codec` compresses or encrypts payloads; clients need the same one. Raises SettingsError. Nothing is opened before it is used, and all of it may be used after a fork.
    """

    def __init__(
        self,
        app: Celery,
        *,
        database: str | None = None,
        settings: Settings | None = None,
        codec: PayloadCodec | None = None,
        clock: Clock = SYSTEM,
    ) -> None:
        self.app = app
        self.codec = codec
        self.clock = clock
        self.answer_doorbell: Callable[[str], None] = _nobody  # set by the worker: take turns as long as `queue` has ready runs
        chosen = settings or current()
        self._chosen = chosen.model_copy(update={"database_url": database}) if database else chosen
        self._defaults = PARTS
        _KNOWN[app] = self
        app.on_after_configure.connect(self._fill, weak=False)
        if getattr(app, "configured", False):  # not in the stub
            self._fill(source=app.conf)
        with_agent_queues(app)
        self._add_doorbell()

    @cached_property
    def settings(self) -> Settings:
        """The snapshot of this process, with the broker and, if no setting names another, the default queue of the application."""
        conf: Any = self.app.conf  # the stub knows no lists of brokers
        url = conf.broker_url
        queue = self._chosen.default_queue if "default_queue" in self._chosen.model_fields_set else conf.task_default_queue
        return self._chosen.model_copy(update={"broker_url": url if isinstance(url, str) else ";".join(url), "default_queue": queue})

    @cached_property
    def store(self) -> Store:
        """The store; raises DatabaseUnavailable if its URL cannot be read."""
        return Store.of(self.settings, clock=self.clock)

    @cached_property
    def broker(self) -> CeleryBroker:
        """Rings and sends through this application."""
        return CeleryBroker(self.app, window_s=self.settings.ring_window_s, clock=self.clock)

    @cached_property
    def converter(self) -> PayloadConverter:
        """Turns values into payloads and back."""
        return PayloadConverter(codec=self.codec, payload_bytes_max=self.settings.payload_bytes_max)

    @cached_property
    def client(self) -> Client:
        """A client that starts workflows through this application."""
        return Client(settings=self.settings, store=self.store, bell=self.broker, codec=self.codec, clock=self.clock)

    def result(self, run_id: str) -> RunResult[Any]:
        """A run as Celery's AsyncResult shows a task. Raises WorkflowNotFound."""
        return result_of(self.client, run_id)

    def check(self) -> None:
        """Raise unless a process can start here: DatabaseUnavailable, DatabaseNotMigrated or BrokerUnavailable, one sentence each.

        The SQLite file of the embedded home is made and migrated, so that nobody has to prepare anything for a first try.
        """
        if embedded_database(self.settings):
            try:
                self.settings.home.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise DatabaseUnavailable(f"the folder {self.settings.home.absolute()} cannot be made: {error.strerror}") from error
        try:
            self.store.check_migrated()
        except DatabaseNotMigrated:
            if not embedded_database(self.settings):
                raise
            self.store.upgrade()
        self.check_broker()

    def check_broker(self) -> None:
        """Raise BrokerUnavailable unless the broker answers."""
        url = self.settings.broker_url
        embedded = embedded_broker(self.settings)
        # One that has just been started on a machine with much to do may be slow to answer; one that is not there has no socket.
        tries = EMBEDDED_TRIES if embedded and valkey_socket(self.settings.home / "valkey").exists() else 1
        try:
            with self.app.connection_for_write() as connection:
                connection.ensure_connection(max_retries=tries, interval_start=0, interval_step=1, timeout=BROKER_ANSWER_MAX_S * tries)
        except ImportError as error:
            message = f"the broker {maybe_sanitize_url(url)} cannot be spoken to: {error}. Install what is missing, or use another broker."
            raise BrokerUnavailable(message) from error
        except Exception as error:
            if embedded:
                home = self.settings.home.absolute()
                message = (
                    f"no embedded broker runs in {home}. Start it with `orchestrator dev`, or name another with ORCHESTRATOR_BROKER_URL."
                )
            else:
                reason = " ".join(str(error.args[0] if error.args else type(error).__name__).split())
                message = f"the broker {maybe_sanitize_url(url)} cannot be reached: {reason}. Check that it runs and that its URL is right."
            raise BrokerUnavailable(message) from error

    def _fill(self, source: Any, **_: Any) -> None:  # noqa: ANN401 - Celery's settings have no public type
        """Put our values behind those of the application and before Celery's own defaults."""
        ours = {**self._defaults, **(AGENT if self._chosen.agent_id else {}), "broker_url": self._chosen.broker_url}
        if _speaks_redis(source.broker_url or self._chosen.broker_url):
            ours["broker_transport_options"] = {**REDIS_OPTIONS, **_restoring(self._chosen)}
        left_open = {key: value for key, value in ours.items() if not source.value_set_for(key)}
        source.maps.insert(-1, left_open)
        source.defaults.insert(-1, left_open)

    def _add_doorbell(self) -> None:
        # Early acknowledgement: a doorbell that is lost rings again, one that is repeated finds nothing to do.
        @self.app.task(name=DOORBELL, shared=False, ignore_result=True, acks_late=False, send_events=False)
        def doorbell(queue: str) -> None:
            self.answer_doorbell(queue)


_KNOWN: WeakKeyDictionary[Celery, Orchestrator] = WeakKeyDictionary()

app: Celery
"""Our own application, made when it is first asked for: whoever adopts another one does not want two."""


def __getattr__(name: str) -> Celery:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    made: Celery = globals().setdefault("app", _own_application())
    return made


def orchestrator_of(app: Celery) -> Orchestrator:
    """The Orchestrator of an application; raises SettingsError if it has none."""
    found = _KNOWN.get(app)
    if found is None:
        raise SettingsError(f"the Celery application {app.main!r} is not one of ours yet. Write Orchestrator(app) where it is made.")
    return found


def orchestrator_at_hand() -> Orchestrator:
    """That of Celery's current application, or the only one of this process; raises SettingsError if that is not clear."""
    found = _KNOWN.get(current_app._get_current_object())  # type: ignore[attr-defined] # noqa: SLF001 - the way behind Celery's proxy
    if found is None and len(_KNOWN) == 1:
        (found,) = _KNOWN.values()
    if found is None:
        which = "has several applications of ours, and none is Celery's current one" if _KNOWN else "has no application of ours"
        raise SettingsError(f"this process {which}. Write Orchestrator(app) where it is made, or use Client(), which says where to.")
    return found


def AsyncResult(run_id: str) -> RunResult[Any]:  # noqa: N802 - Celery's name
    """A run by its run id, as Celery's AsyncResult shows a task. Raises WorkflowNotFound, SettingsError."""
    return orchestrator_at_hand().result(run_id)


def _start_by_habit(function: WorkflowFunction[Any, Any], args: Sequence[Any], options: Mapping[str, Any]) -> RunResult[Any]:
    if in_workflow():
        call = f"workflow.execute_child_workflow({function.__name__}, ...)"
        raise NonDeterministicCall(
            f"{function.__name__}.delay starts a run behind the back of this one. Use {call}, or await it as a part."
        )
    return RunResult(orchestrator_at_hand().client.start_workflow(function, args=list(args), **options))


HABITS.append(_start_by_habit)


def check_or_refuse(ours: Orchestrator) -> None:
    """End the process unless it can start here."""
    try:
        ours.check()
    except OrchestratorError as error:
        refuse(error)


def refuse(error: OrchestratorError) -> NoReturn:
    """End a process that cannot start: one sentence for people, no traceback, exit code 1."""
    # Celery may have put a logger in the place of stderr.
    print(f"orchestrator: {error.message}", file=sys.__stderr__, flush=True)
    raise SystemExit(1)


def _own_application() -> Celery:
    settings = current()
    own = Celery("orchestrator")
    ours = Orchestrator(own, settings=settings)
    results = {"result_backend": settings.result_backend, "task_ignore_result": False} if settings.result_backend else {}
    ours._defaults = {**PARTS, **HOUSE, **results, "task_default_queue": settings.default_queue}  # noqa: SLF001 - the one difference
    return own


def _restoring(settings: Settings) -> Mapping[str, Any]:
    """After how long Redis hands a task that nobody acknowledged to somebody else."""
    return {
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_interval": settings.restore_interval_s,
        "unacked_restore_throttle": settings.restore_throttle,
    }


def _speaks_redis(url: str | list[str]) -> bool:
    first = url if isinstance(url, str) else url[0]
    return first.partition(":")[0].partition("+")[0] in {"redis", "rediss", "sentinel"}


@signals.import_modules.connect
def _import_included(sender: Celery, **_: Any) -> None:  # noqa: ANN401 - signals add what they like
    ours = _KNOWN.get(sender)
    for module in ours.settings.include if ours else ():
        try:
            sender.loader.import_task_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise  # the module is there, something that it imports is not: its traceback says where
            refuse(SettingsError(f"the module {module!r} of ORCHESTRATOR_INCLUDE cannot be found. Start in its folder or set PYTHONPATH."))


@signals.celeryd_init.connect
def _check_worker(instance: Any, **_: Any) -> None:  # noqa: ANN401 - signals add what they like
    ours = _KNOWN.get(instance.app)
    if ours is not None:
        check_or_refuse(ours)
        instance.app.loader.import_task_module(STEPS).install(instance.app)


@signals.worker_init.connect
def _import_steps(sender: Any, **_: Any) -> None:  # noqa: ANN401 - signals add what they like
    # A worker inside another process, as tests have it, is not announced by celeryd_init.
    if sender.app in _KNOWN:
        sender.app.loader.import_task_module(STEPS).install(sender.app)


@signals.beat_init.connect
def _check_beat(sender: Any, **_: Any) -> None:  # noqa: ANN401 - signals add what they like
    ours = _KNOWN.get(sender.app)
    if ours is not None:
        check_or_refuse(ours)
