"""A seed becomes a world with work in it, goes, and is judged."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

from orchestrator.settings import load
from schemas.runs import ActivityKey
from schemas.settings import Settings
from tests.laws import Run, check_laws
from tests.simulation import scenarios
from tests.simulation.faults import Faults
from tests.simulation.scenarios import Clients, Ended, Scenario
from tests.simulation.world import World

SCENARIOS_MAX = 6
ORPHANS_S = 40.0  # within this after all else is over, nothing belongs to a worker that does not exist


def settings_of(chance: Random) -> Settings:
    """The optimisations of a seed."""
    newer = Random(str(chance.getstate()))  # for settings that came later: what a seed meant before, it goes on to mean
    return load(
        {},
        database_url="sqlite://",
        broker_url="memory://",
        default_queue="main",
        lease_s=6.0,
        lease_beat_s=2.0,
        neighbours_s=1.5,
        poll_s=chance.choice((1.0, 2.0)),
        tick_s=4.0,
        forgotten_s=2.0,
        beat_lease_s=5.0,
        claim_batch_max=chance.choice((1, 2, 128)),
        inbox_max=chance.choice((1, 2, 1000, 1000)),
        instances_max=chance.choice((1, 10_000, 10_000)),
        due_batch_max=chance.choice((1, 2, 1000)),
        cache=chance.random() < 0.7,
        eager=chance.random() < 0.7,
        ring_window_s=chance.choice((0.0, 0.002)),
        hints=newer.random() < 0.5,
        quick_claims=newer.random() < 0.7,
        own_timers=newer.random() < 0.7,
    )


def simulate(
    seed: int,
    *,
    faults: Faults | None = None,
    only: tuple[str, ...] = (),
    aim: str = "",
    aim_hit: int = 1,
    changed: Mapping[str, object] | None = None,
) -> World:
    """One world from its beginning to its judgement; `only` these scenarios, `aim` at a crash point, settings `changed`."""
    chance = Random(seed)
    settings = settings_of(chance).model_copy(update=changed)
    world = World(seed, faults if faults is not None else Faults.drawn(chance), settings, aim=aim, aim_hit=aim_hit)
    makers = [maker for maker in scenarios.ALL if maker.__name__ in only] or chance.sample(scenarios.ALL, chance.randint(1, SCENARIOS_MAX))
    work = {f"{number}-{maker.__name__}": maker(chance) for number, maker in enumerate(makers)}
    try:
        clients = Clients(world)
        for id_, scenario in work.items():
            clients.use(scenario, id_)
        world.go(lambda: not clients.left and all_closed(world, len(work)))
        check_laws(world.store, orphans=True)
        until = world.steady + ORPHANS_S
        world.go(lambda: world.steady >= until, look_every_s=5.0)
        world.runs = check_laws(world.store, replay=False)
        judge(world, work, world.runs)
    except BaseException as error:
        error.add_note(
            f"--seed {seed}: {sorted(work)}; {world.faults}; {settings.model_dump(include={'cache', 'eager', 'hints', 'quick_claims', 'own_timers', 'claim_batch_max'})}"
        )
        error.add_note("\n".join(world.trace[-400:]))
        raise
    finally:
        world.end()
    return world


def all_closed(world: World, workflows: int) -> bool:
    with world.quietly() as tx:
        ((opened, known),) = tx.run(
            "SELECT sum(status = 'running'), count(DISTINCT CASE WHEN parent_id IS NULL THEN workflow_id END) FROM runs"
        )
    return not opened and known == workflows


def judge(world: World, work: dict[str, Scenario], all_runs: list[Run]) -> None:
    with world.quietly() as tx:
        assert not tx.run("SELECT id FROM queries WHERE answered_at IS NULL"), "a query was not answered"
    twice = [key for key, times in world.executions.items() if times > 1]
    assert not twice, f"these attempts were executed more than once: {twice}"
    _check_attempts(world)
    for id_, scenario in work.items():
        end: Ended = scenarios.ended(world, all_runs, id_)
        assert scenario.right(end) or scenarios.excused(end), f"{id_} ended with {end.outcome} {end.failure}"


def _check_attempts(world: World) -> None:
    attempts: dict[tuple[str, int], list[int]] = {}
    key: ActivityKey
    for key in world.executions:
        attempts.setdefault((key.run_id, key.seq), []).append(key.attempt)
    for (run_id, seq), numbers in attempts.items():
        assert len(set(numbers)) == len(numbers), f"activity {seq} of run {run_id} ran attempts {numbers}"
