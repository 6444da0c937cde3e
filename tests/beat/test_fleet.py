"""Beat asks each agent for heartbeats and summaries in its own rhythm, and never makes up for what it missed."""

from __future__ import annotations

import resource

import pytest

from beat.fleet import FLUSH, GATHER_S, HEARTBEAT, LOOK_S, Agenda, Pulse
from orchestrator.fleet import Fleet
from orchestrator.store import Store, workers
from schemas.agents import AgentKind, AgentSpec, AgentStatus, Heartbeat
from schemas.runs import WorkerIdentity
from schemas.settings import Settings


class Air:
    """Hears what is broadcast, and can be out of order."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, list[str]]] = []

    def __call__(self, command, arguments) -> None:
        self.heard.append((command, list(arguments["ids"])))

    def count(self, command: str, agent_id: str) -> int:
        return sum(agent_id in ids for name, ids in self.heard if name == command)


@pytest.fixture
def store(sqlite_url, clock):
    opened = Store.open(sqlite_url, clock=clock)
    opened.upgrade()
    with opened.transaction() as tx:
        workers.register(tx, WorkerIdentity("w", "n@here", "here", "boot", 1, 1.0, ("fleet",), ""), 1e9)
    yield opened
    opened.dispose()


@pytest.fixture
def fleet(store, bells, clock):
    with Fleet(Settings(broker_url="memory://", database_url="sqlite://"), store=store, bell=bells, clock=clock) as fleet:
        yield fleet


@pytest.fixture
def air() -> Air:
    return Air()


@pytest.fixture
def pulse(fleet, air, clock) -> Pulse:
    return Pulse(fleet, fleet.settings, broadcast=air, clock=clock)


def add(fleet, agent_id, **fields):
    spec = AgentSpec(id=agent_id, type="echo", **fields)
    fleet.ready(spec, node="n@here", pid=1, pid_started_at=1.0, capabilities={})


def pass_time(pulse, clock, seconds, step=0.25):
    for _ in range(round(seconds / step)):
        pulse.go()
        clock.advance(step)


@pytest.mark.req("S0-09")
@pytest.mark.req("S0-08")
@pytest.mark.req("DC-05")
@pytest.mark.req("DC-06")
def test_each_agent_has_a_rhythm_of_its_own(fleet, pulse, air, clock):
    add(fleet, "quick", heartbeat_interval_s=2, flush_interval_s=5)
    add(fleet, "calm", heartbeat_interval_s=10, flush_interval_s=20)
    pass_time(pulse, clock, 40)
    assert [air.count(HEARTBEAT, "quick"), air.count(FLUSH, "quick")] == [pytest.approx(20, abs=1), pytest.approx(8, abs=1)]
    assert [air.count(HEARTBEAT, "calm"), air.count(FLUSH, "calm")] == [pytest.approx(4, abs=1), pytest.approx(2, abs=1)]


@pytest.mark.req("S0-10")
@pytest.mark.req("DC-34")
def test_after_an_outage_each_is_asked_once_and_not_all_at_the_same_moment(fleet, pulse, air, clock):
    for number in range(50):
        add(fleet, f"a-{number}", flush_interval_s=10)
    pass_time(pulse, clock, 30)
    air.heard.clear()
    clock.advance(300)
    late = Pulse(fleet, fleet.settings, broadcast=air, clock=clock)  # another beat, or this one after a long sleep
    pass_time(late, clock, 9)
    flushes = [ids for command, ids in air.heard if command == FLUSH]
    assert sum(map(len, flushes)) == 50
    assert max(map(len, flushes)) <= 10


@pytest.mark.req("DC-07")
def test_a_changed_interval_counts_within_seconds_and_a_removed_agent_is_left_alone(fleet, pulse, air, clock):
    add(fleet, "a-1", flush_interval_s=600)
    pass_time(pulse, clock, 2)
    fleet.update("a-1", {"flush_interval_s": 1.0})
    pass_time(pulse, clock, LOOK_S + 5)
    assert air.count(FLUSH, "a-1") >= 4
    fleet.exited("a-1", 0)
    fleet.remove("a-1", actor="ada")
    pass_time(pulse, clock, LOOK_S)
    air.heard.clear()
    pass_time(pulse, clock, 10)
    assert air.heard == []


@pytest.mark.req("S0-13")
def test_a_child_beats_by_itself_and_is_only_asked_for_summaries(fleet, pulse, air, clock):
    add(fleet, "c-1", kind=AgentKind.CHILD, executable="python", flush_interval_s=2)
    pass_time(pulse, clock, 20)
    assert air.count(HEARTBEAT, "c-1") == 0
    assert air.count(FLUSH, "c-1") >= 8


def test_a_flush_is_owed_before_it_is_asked_for(fleet, air, clock, store):
    def broken(command, _arguments):
        raise OSError(command)

    add(fleet, "a-1", flush_interval_s=1)
    pulse = Pulse(fleet, fleet.settings, broadcast=broken, clock=clock)
    pulse.go()
    clock.advance(6)
    with pytest.raises(OSError, match="agent_"):
        pulse.go()
    assert fleet.get("a-1").last_flush_at is not None


@pytest.mark.req("S2-36")
def test_a_silent_agent_is_noticed_and_one_whose_beat_was_away_is_not(fleet, pulse, clock):
    add(fleet, "a-1")
    fleet.record_heartbeats([Heartbeat("a-1", 0.0)])
    pass_time(pulse, clock, 55, step=1.0)
    assert fleet.get("a-1").status is AgentStatus.RUNNING
    pass_time(pulse, clock, 15, step=1.0)
    assert fleet.get("a-1").status is AgentStatus.INACTIVE


def test_agents_of_a_worker_that_is_gone_are_missed_within_seconds(fleet, pulse, clock, store):
    add(fleet, "a-1")
    with store.transaction() as tx:
        workers.remove(tx, "w")
    pass_time(pulse, clock, 3)
    assert fleet.get("a-1").status is AgentStatus.ERROR


def test_late_agents_are_not_due_several_times():
    agenda = Agenda()
    agenda.update({(FLUSH, "a"): (10.0, 0.0)}, now=0.0)
    assert agenda.take(95.0) == {FLUSH: ["a"]}
    assert agenda.take(95.0) == {}
    assert agenda.wait_s(95.0, 60.0) == 10.0


def test_a_thousand_agents_cost_beat_less_than_two_percent_of_a_core(fleet, pulse, clock, air, store):
    for number in range(1000):
        add(fleet, f"a-{number}")
    fleet.record_heartbeats([Heartbeat(f"a-{number}", 0.0) for number in range(1000)])
    pass_time(pulse, clock, 15)
    with store.transaction() as tx:  # they are well: what their hosts do to say so is no work of beat
        tx.run("UPDATE agent_vitals SET last_heartbeat_at = last_heartbeat_at + :minutes", minutes=600.0)
    used_s = []
    for _ in range(3):  # the least disturbed of three minutes
        before = resource.getrusage(resource.RUSAGE_SELF)
        air.heard.clear()
        pass_time(pulse, clock, 60)
        after = resource.getrusage(resource.RUSAGE_SELF)
        used_s.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        assert sum(len(ids) for command, ids in air.heard if command == HEARTBEAT) == pytest.approx(4000, rel=0.05)
    assert min(used_s) < 60 * 0.02, used_s


def test_many_agents_whose_rhythms_lie_anywhere_are_few_rounds_and_few_messages():
    agenda = Agenda()
    agenda.update({(HEARTBEAT, f"a-{number}"): (15.0, number * 0.015) for number in range(1000)}, now=0.0)
    now, rounds, asked = 0.0, 0, 0
    while (now := now + agenda.wait_s(now, 60.0)) <= 60.0:
        rounds += 1
        asked += len(agenda.take(now)[HEARTBEAT])
    assert asked == pytest.approx(4000, rel=0.05)
    assert rounds <= 60 / GATHER_S + 1


@pytest.mark.req("S2-06")
@pytest.mark.req("S2-17")
@pytest.mark.req("S2-07")
@pytest.mark.req("S0-26")
def test_agents_of_files_are_entered_and_started_whenever_they_are_new_or_have_changed(fleet, air, clock, tmp_path, caplog):
    def write(text: str) -> None:
        (tmp_path / "fleet.yaml").write_text(text)

    write("agents:\n  - {id: a}\n  - {id: broken, prot: 1}\n  - {id: idle, enabled: false}\n  - {id: z}\n")
    settings = fleet.settings.model_copy(update={"config": (tmp_path / "fleet.yaml",), "discovery_interval_s": 300.0})
    pulse = Pulse(fleet, settings, broadcast=air, clock=clock)
    pulse.go()
    states = {agent.id: agent.status for agent in fleet.list_agents() if agent.discovery == "config"}
    assert states == {"a": AgentStatus.STARTING, "idle": AgentStatus.STOPPED, "z": AgentStatus.STARTING}, (
        "one that is broken stops no other"
    )
    assert caplog.text.count("not discovered: ") == 1
    assert [event.trigger for event in fleet.events("a")][::-1] == ["added", "start"], "found, then registered, then started"

    fleet.update("a", {"concurrency": 9})
    write("agents: [{id: a}, {id: b}]")
    pass_time(pulse, clock, 299, step=1)
    assert {agent.id for agent in fleet.list_agents() if agent.discovery == "config"} == {"a", "idle", "z"}, "it is not time yet"
    pass_time(pulse, clock, 2, step=1)
    assert {agent.id for agent in fleet.list_agents() if agent.discovery == "config"} == {"a", "b", "idle", "z"}, "nobody is removed"
    assert fleet.get("a").spec.concurrency == 9, "the file has not changed what it says of a, the operator has"

    write("agents: [{id: a, concurrency: 5}]")
    pass_time(pulse, clock, 301, step=1)
    assert fleet.get("a").spec.concurrency == 5
    assert caplog.text.count("not discovered: ") == 1, "told once"


def test_a_package_leaves_an_agent_alone_that_came_in_another_way(fleet, air, clock, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "agent.toml").write_text("concurrency = 2\nenabled = false")
    fleet.add(AgentSpec(id="mine", type="echo", concurrency=7))
    settings = fleet.settings.model_copy(update={"package_folders": (tmp_path,)})
    Pulse(fleet, settings, broadcast=air, clock=clock).go()
    assert (fleet.get("mine").spec.concurrency, fleet.get("mine").discovery) == (7, "api")


def test_an_agent_that_came_with_us_is_entered_when_a_setting_names_it(fleet, pulse, air, clock):
    pulse.go()
    assert fleet.list_agents() == []
    named = fleet.settings.model_copy(update={"package_enabled": ("echo",)})
    Pulse(fleet, named, broadcast=air, clock=clock).go()
    (agent,) = fleet.list_agents()
    assert (agent.id, agent.status, agent.discovery) == ("echo", AgentStatus.STARTING, "package")
