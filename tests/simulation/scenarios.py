"""Scenarios: what clients do to the corpus, and what must come of it; law: an oracle knows nothing of who ran what when."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast

from orchestrator.client import Client
from orchestrator.errors import DatabaseUnavailable, WorkflowAlreadyStarted, WorkflowNotFound, WorkflowNotOpen
from orchestrator.handle import Spoken, deliver_together
from orchestrator.starting import UNSET
from orchestrator.store import runs
from orchestrator.waiting import Waiter
from schemas.history import ActivityCanceled, ActivityFailed, ActivityScheduled, Failure, SignalReceived
from schemas.runs import IdConflictPolicy, IdReusePolicy, Status
from tests.laws import Run, events_of
from tests.simulation import corpus_workflows as corpus
from tests.simulation.corpus_activities import MAIN_QUEUE, SIDE_QUEUE
from tests.simulation.faults import SimulatedCrash
from tests.simulation.processes import Process
from tests.simulation.world import World

LOSSES = 3  # deaths that make an activity poison


@dataclass
class Ended:
    """How a workflow ended: its last run, and all of them."""

    last: Run
    chain: list[Run]
    failure: Failure | None
    world: World
    family: list[Run]  # the runs of its children and their children

    @property
    def outcome(self) -> tuple[Status, Any]:
        return self.last.status, self.last.result

    def executions(self, seq: int) -> int:
        return sum(times for key, times in self.world.executions.items() if key.run_id == self.last.run_id and key.seq == seq)


Oracle = Callable[[Ended], bool]


@dataclass
class Act:
    """Something that a client does at a time, again until it is known to be done."""

    at_s: float
    do: Callable[[Client, str], Any]


@dataclass
class Scenario:
    """One workflow of the corpus with a way to use it."""

    name: str
    workflow: Any
    args: list[Any]
    right: Oracle
    acts: list[Act] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    starts: int = 1


def completed(value: Any) -> Oracle:
    return lambda ended: ended.outcome == (Status.COMPLETED, value)


def one_of(*values: Any) -> Oracle:
    return lambda ended: ended.last.status is Status.COMPLETED and ended.last.result in values


def sequence(chance: Random) -> Scenario:
    steps = chance.randint(1, 6)
    return Scenario("sequence", corpus.sequence, [steps], completed(sum(range(steps))))


def fan(chance: Random) -> Scenario:
    width = chance.randint(1, 12)
    return Scenario("fan", corpus.fan, [width], completed(sum(2 * n for n in range(width))))


def race(chance: Random) -> Scenario:
    return Scenario("race", corpus.race, [chance.uniform(0.5, 6.0)], one_of("timer", "activity", "lost"))


def collect(chance: Random) -> Scenario:
    wanted = chance.randint(1, 6)
    together = range(min(wanted, 3))  # sent at once by threads of one process: one commit
    acts = [crowd("collect", together, chance), *(put("collect", n, chance) for n in range(len(together), wanted))]
    acts += [Act(chance.uniform(0.0, 10.0), lambda client, id_: next(client.get_handle(id_).query_steps("count", UNSET, ())))]
    right = lambda ended: ended.last.status is Status.COMPLETED and sorted(ended.last.result) == list(range(wanted))  # noqa: E731 - an oracle in a line
    return Scenario("collect", corpus.Collect, [wanted], right, acts)


def handlers(chance: Random) -> Scenario:
    wanted = chance.randint(1, 4)
    return Scenario(
        "handlers", corpus.Handlers, [wanted], completed(sum(range(wanted))), [put("handlers", n, chance) for n in range(wanted)]
    )


def put(name: str, item: int, chance: Random) -> Act:
    def do(client: Client, id_: str) -> str:
        request_id = f"{id_}-{name}-{item}"
        client.get_handle(id_).signal("put", item, request_id=request_id)
        return request_id

    return Act(chance.uniform(0.0, 8.0), do)


def crowd(name: str, items: Iterable[int], chance: Random) -> Act:
    def do(client: Client, id_: str) -> str:
        request_ids = {item: f"{id_}-{name}-{item}" for item in items}
        signals = {item: SignalReceived("put", (item,), id=request_id) for item, request_id in request_ids.items()}
        spoken = [Spoken((id_,), signal, request_ids[item], handle=client.get_handle(id_)) for item, signal in signals.items()]
        for hindrance in deliver_together(client._connection, spoken):
            if hindrance is not None:
                raise hindrance
        return request_ids[0]

    return Act(chance.uniform(0.0, 8.0), do)


def hurried(chance: Random) -> Scenario:
    """More signals than the run waits for: it closes while they come."""
    acts = [put("hurried", n, chance) for n in range(6)]

    def right(ended: Ended) -> bool:
        heard = {event.args[0] for event in events_of(ended.last.turns) if isinstance(event, SignalReceived)}
        acknowledged = {int(act.rpartition("-")[2]) for act in ended.world.acknowledged if act.startswith(ended.last.workflow_id)}
        return ended.last.status is Status.COMPLETED and acknowledged <= heard

    return Scenario("hurried", corpus.Collect, [2], right, acts)


def retrying(chance: Random) -> Scenario:
    return Scenario("retrying", corpus.retrying, [chance.randint(0, 3)], completed("succeeded"))


def gives_up(chance: Random) -> Scenario:
    attempts = chance.randint(1, 4)
    right = lambda ended: ended.outcome == (Status.COMPLETED, "gave up") and 1 - (ended.world.deaths > 0) <= ended.executions(1) <= attempts  # noqa: E731 - as above
    return Scenario("gives_up", corpus.gives_up, [attempts], right)


def at_most_once(chance: Random) -> Scenario:
    right = lambda ended: ended.outcome in {(Status.COMPLETED, 7), (Status.COMPLETED, -1)} and ended.executions(1) <= 1  # noqa: E731 - as above
    return Scenario("at_most_once", corpus.at_most_once, [7], right)


def canceled(chance: Random) -> Scenario:
    kind = chance.choice(("timer", "wait", "try", "abandon"))
    cancel = Act(chance.uniform(0.0, 12.0), lambda client, id_: client.get_handle(id_).cancel("enough"))

    def right(ended: Ended) -> bool:
        cleaned = [event for event in events_of(ended.last.turns) if isinstance(event, ActivityScheduled) and event.type == "sim.add"]
        return ended.last.status is Status.CANCELED and len(cleaned) == 1

    return Scenario(f"canceled {kind}", corpus.canceled, [kind], right, [cancel])


def again(chance: Random) -> Scenario:
    times = chance.randint(1, 4)
    right = lambda ended: completed(sum(range(times + 1)))(ended) and len(ended.chain) == times  # noqa: E731 - as above
    return Scenario("again", corpus.again, [times, 0], right)


def timed_out(chance: Random) -> Scenario:
    right = lambda ended: ended.last.status is Status.TIMED_OUT  # noqa: E731 - as above
    return Scenario("timed_out", corpus.endless, [], right, options={"run_timeout": chance.uniform(1.0, 9.0)})


def terminated(chance: Random) -> Scenario:
    right = lambda ended: ended.last.status is Status.TERMINATED  # noqa: E731 - as above
    return Scenario(
        "terminated", corpus.endless, [], right, [Act(chance.uniform(0.0, 9.0), lambda c, id_: c.get_handle(id_).terminate("now"))]
    )


def elsewhere(chance: Random) -> Scenario:
    return Scenario("elsewhere", corpus.elsewhere, [1], completed(3))


def silent(chance: Random) -> Scenario:
    def right(ended: Ended) -> bool:
        return ended.outcome == (Status.COMPLETED, 5)

    return Scenario("silent", corpus.silent_once, [5, chance.random() < 0.5], right)


def poisoned(chance: Random) -> Scenario:
    return Scenario("poisoned", corpus.poisoned, [], completed("set aside"))


def tasks(chance: Random) -> Scenario:
    return Scenario("tasks", corpus.tasks, [3], completed(12))


def naps(chance: Random) -> Scenario:
    durations = [chance.choice((0.0, 0.01, 0.5, 3.0)) for _ in range(chance.randint(1, 3))]

    def right(ended: Ended) -> bool:
        # Somebody may have set the clock of a worker; the run sees time that goes on all the same.
        return ended.outcome == (Status.COMPLETED, [True] * 2 * len(durations))

    return Scenario("naps", corpus.naps, [durations], right)


def delayed(chance: Random) -> Scenario:
    return Scenario("delayed", corpus.sequence, [2], completed(1), options={"start_delay": chance.uniform(0.1, 5.0)})


def mend(client: Client, id_: str) -> None:
    corpus.World.mended = True


def stuck(chance: Random) -> Scenario:
    return Scenario("stuck", corpus.stuck, [1], completed(3), [Act(chance.uniform(0.0, 15.0), mend)])


def unwritable(chance: Random) -> Scenario:
    return Scenario("unwritable", corpus.unwritable, [1], completed(2), [Act(chance.uniform(0.0, 15.0), mend)])


def started_often(chance: Random) -> Scenario:
    right = lambda ended: completed(3)(ended) and len(ended.chain) == 1  # noqa: E731 - as above
    return Scenario("started_often", corpus.sequence, [3], right, starts=4)


def replaced(chance: Random) -> Scenario:
    """Every start ends the run before it; the last one lives."""
    return Scenario(
        "replaced",
        corpus.sequence,
        [4],
        lambda ended: ended.outcome == (Status.COMPLETED, 6),
        options={"id_conflict_policy": IdConflictPolicy.TERMINATE_EXISTING, "id_reuse_policy": IdReusePolicy.ALLOW_DUPLICATE},
        starts=3,
    )


def family(chance: Random) -> Scenario:
    width = chance.randint(1, 7)
    each = {0: sum(range(1)), 1: sum(2 * n for n in range(2)), 2: 5}
    right = completed(sum(each[n % 3] for n in range(width)) + 6)
    return Scenario("family", corpus.family, [width, [chance.choice((None, MAIN_QUEUE, SIDE_QUEUE)) for _ in range(3)]], right)


def conversation(chance: Random) -> Scenario:
    words = chance.randint(1, 5)

    def right(ended: Ended) -> bool:
        heard = ended.last.result
        return ended.last.status is Status.COMPLETED and sorted(heard) == list(range(2 * words)) and heard[:words] == list(range(words))

    return Scenario("conversation", corpus.conversation, [words], right)


def ping(chance: Random) -> Scenario:
    rounds = chance.randint(1, 6)
    return Scenario("ping", corpus.Ping, [None, rounds], completed(rounds))


def household(chance: Random) -> Scenario:
    """A family whose head is ended: nobody is forgotten, nobody is ended who was let go."""
    how = chance.choice(("terminate", "time out", "cancel", "return"))
    acts = [Act(chance.uniform(0.0, 9.0), HOW[how])] if how in HOW else []
    options = {"run_timeout": chance.uniform(0.5, 9.0)} if how == "time out" else {}
    depth = 0 if how == "return" else chance.randint(0, 2)

    def right(ended: Ended) -> bool:
        head = {"terminate": Status.TERMINATED, "time out": Status.TIMED_OUT, "cancel": Status.CANCELED, "return": Status.COMPLETED}[how]
        return ended.last.status is head and all(allowed(run) for run in ended.family)

    def allowed(run: Run) -> bool:
        fate = FATES[run.workflow_id.rpartition("/")[2]]
        # Who cancels a start that is not known yet cancels the child, whatever its policy.
        return run.status in (fate | {Status.CANCELED} if how == "cancel" else fate)

    return Scenario(f"household {how}", corpus.Household, [depth, "return" if how == "return" else "wait"], right, acts, options)


HOW: dict[str, Callable[[Client, str], Any]] = {
    "terminate": lambda client, id_: client.get_handle(id_).terminate("now"),
    "cancel": lambda client, id_: client.get_handle(id_).cancel("enough"),
}
FATES = {
    "terminate": {Status.TERMINATED},
    "request_cancel": {Status.CANCELED},
    "abandon": {Status.TIMED_OUT},
    "household": {Status.TERMINATED},
}


def canceled_family(chance: Random) -> Scenario:
    how = chance.choice(("try_cancel", "wait_cancellation_completed"))

    def right(ended: Ended) -> bool:
        # With "try_cancel" the parent is gone first, and its policy ends the child before it has cleaned up.
        ends = {Status.CANCELED} if how == "wait_cancellation_completed" else {Status.CANCELED, Status.TERMINATED}
        return ended.last.status is Status.CANCELED and all(run.status in ends for run in ended.family)

    return Scenario(f"canceled_family {how}", corpus.canceled_family, [how], right, [Act(chance.uniform(0.0, 9.0), HOW["cancel"])])


def pestering(chance: Random) -> Scenario:
    words, more = chance.randint(1, 5), chance.choice((0, 0, 1, 3))
    return Scenario("pestering", corpus.pestering, [words, more], completed("cancelled" if more else list(range(words))))


def twice(chance: Random) -> Scenario:
    return Scenario("twice", corpus.twice, [], completed(["3", "taken"]))


ALL = (
    sequence,
    fan,
    race,
    collect,
    handlers,
    hurried,
    retrying,
    gives_up,
    at_most_once,
    canceled,
    again,
    timed_out,
    terminated,
    elsewhere,
    silent,
    poisoned,
    tasks,
    naps,
    delayed,
    stuck,
    unwritable,
    started_often,
    replaced,
    family,
    conversation,
    ping,
    household,
    canceled_family,
    pestering,
    twice,
)
DONE = (WorkflowAlreadyStarted, WorkflowNotOpen)


class Clients:
    """Callers: each does one thing, may die of it, and another one does it again until somebody knows that it is done."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.client = Client(settings=world.settings, store=world.store, bell=world.wire, clock=world.clock)
        self.client._connection.waiter = cast("Waiter", NobodyWaits())
        self.actor = Caller(world)
        self.left = 0
        corpus.World.mended = True

    def use(self, scenario: Scenario, id_: str) -> None:
        world = self.world
        if scenario.workflow in {corpus.stuck, corpus.unwritable}:
            corpus.World.mended = False

        def start(client: Client, id_: str) -> None:
            # A client that does not know whether it started may start again, but not after somebody has ended the run.
            options = {"id_reuse_policy": IdReusePolicy.REJECT_DUPLICATE, **scenario.options}
            client.start_workflow(scenario.workflow, args=scenario.args, id=id_, queue=MAIN_QUEUE, **options)

        for _ in range(scenario.starts):
            self._later(Act(world.random.uniform(0.0, 3.0), start), id_)
        for act in scenario.acts:
            self._later(act, id_)

    def _later(self, act: Act, id_: str) -> None:
        self.left += 1
        self.world.after(act.at_s, lambda: self._try(act, id_))

    def _try(self, act: Act, id_: str) -> None:
        world = self.world
        before, world.actor = world.actor, self.actor
        try:
            world.acknowledged.add(str(act.do(self.client, id_)))
            self.left -= 1
        except DONE:
            self.left -= 1
        except (DatabaseUnavailable, WorkflowNotFound, SimulatedCrash) as error:
            world.note(f"client: {type(error).__name__}")
            world.after(0.5, lambda: self._try(act, id_))
        finally:
            world.actor = before


class NobodyWaits:
    """Callers of the simulation look later whether they were answered."""

    def wait_for(self, awaited: Any) -> None:
        return


class Caller(Process):
    """The process of a caller: it only dies."""

    def __init__(self, world: World) -> None:
        self.name = "client"
        self.world = world
        self.alive = True
        self.fibers = []


def ended(world: World, all_runs: list[Run], workflow_id: str) -> Ended:
    chain = [run for run in all_runs if run.workflow_id == workflow_id]
    successors = [run for run in chain if run.status is not Status.CONTINUED_AS_NEW]
    last = max(successors, key=lambda run: run.run_id)
    with world.store.transaction(readonly=True) as tx:
        _, _, failure, _ = runs.outcome(tx, [last.run_id])[last.run_id]
    return Ended(last, chain, failure, world, [run for run in all_runs if run.workflow_id.startswith(f"{workflow_id}/")])


def worker_lost(failure: Failure | None) -> bool:
    while failure is not None:
        if failure.kind == "worker_lost":
            return True
        failure = failure.cause
    return False


def excused(end: Ended) -> bool:
    """An activity was running in so many workers as they died that it was set aside: any oracle must live with that."""
    everybody = [end.last, *end.family]
    resolved = [event for run in everybody for event in events_of(run.turns) if isinstance(event, ActivityFailed | ActivityCanceled)]
    aside = any(isinstance(event, ActivityFailed) and worker_lost(event.failure) for event in resolved)
    return end.world.deaths >= LOSSES and aside
