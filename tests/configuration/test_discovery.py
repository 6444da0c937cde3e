"""Which agents there are: configuration files and package folders; what is broken is told and stops no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.discovery import Discovery, discover, in_folders, shipped_folder
from schemas.agents import AgentKind, RestartMode
from schemas.settings import Settings

SKIP = Settings().package_skip


@pytest.fixture
def packages(tmp_path):
    """A folder of agent packages; call it to add one."""
    folder = tmp_path / "packages"
    folder.mkdir()

    def add(name, text="", file="agent.toml"):
        (folder / name).mkdir(exist_ok=True)
        if text is not None:
            (folder / name / file).write_text(text)
        return folder

    return add


def ids(found: Discovery) -> list[str]:
    return [each.spec.id for each in found.agents]


def settings(tmp_path: Path, text: str = "", **fields) -> Settings:
    (tmp_path / "fleet.yaml").write_text(text)
    return Settings(config=(tmp_path / "fleet.yaml",), **fields)


@pytest.mark.req("S2-07")
def test_packages_are_found_by_their_file_and_the_broken_one_is_told(packages):
    packages("a")
    packages("b", '{"agent_id": "other", "type": "b", "entry_point": "some.module:B"}', "agent.json")
    packages("c", "description: third\nconcurrency: 4", "agent.yaml")
    packages("_template")
    packages("test")
    packages("__pycache__")
    packages(".git")
    packages("no-config", None)
    folder = packages("broken", "id = \n")
    (folder / "a-file").touch()
    found = in_folders([folder], skip=SKIP)
    assert ids(found) == ["a", "other", "c"]
    assert [(each.spec.type, each.spec.kind) for each in found.agents] == [
        ("a", AgentKind.NATIVE),
        ("b", AgentKind.NATIVE),
        ("c", AgentKind.NATIVE),
    ]
    assert {each.discovery for each in found.agents} == {"package"}
    assert [problem.sentence.removeprefix(f"{folder}/") for problem in found.problems] == [
        "broken/agent.toml:1: is not valid TOML: Invalid value",
        "no-config: has no agent.toml, agent.yaml or agent.json, so it is no agent package; add one, or put its name in package_skip",
    ]


@pytest.mark.req("S2-07")
def test_more_names_can_be_skipped(packages):
    packages("a")
    assert ids(in_folders([packages("drafts")], skip=(*SKIP, "drafts"))) == ["a"]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("heartbeat_interval_s = 1\nconcurrency = -1", "agent.toml:2: concurrency must be at least 1, but is -1"),
        ("concurency = 1", "concurency is nothing that an agent can say; did you mean 'concurrency'?"),
        ('kind = "child"', "agent 'broken' is a child, so it needs an executable"),
        ('id = ""', "id must consist of letters, digits"),
    ],
)
def test_a_package_that_says_something_wrong_is_told_in_one_sentence(packages, text, expected):
    packages("broken", text)
    found = in_folders([packages("fine")], skip=SKIP)
    assert ids(found) == ["fine"]
    assert expected in found.problems[0].sentence


def test_a_package_with_two_files_is_told(packages):
    packages("a", "", "agent.toml")
    (problem,) = in_folders([packages("a", "", "agent.yaml")], skip=SKIP).problems
    assert problem.message == "has agent.toml and agent.yaml; remove one"


def test_a_folder_that_is_not_there_is_told_and_the_others_are_read(packages, tmp_path):
    found = in_folders([tmp_path / "nowhere", packages("a")], skip=SKIP)
    assert ids(found) == ["a"]
    assert "cannot be looked through for agent packages: No such file" in found.problems[0].message


def test_files_of_a_package_are_found_wherever_it_runs(packages):
    folder = packages("a", 'executable = "python"\nargs = ["main.py", "--fast", "elsewhere.py"]')
    (folder / "a" / "main.py").touch()
    (agent,) = in_folders([folder], skip=SKIP).agents
    assert agent.spec.kind is AgentKind.CHILD
    assert agent.spec.args == (str(folder / "a" / "main.py"), "--fast", "elsewhere.py")


def test_the_class_of_a_package_is_found_in_its_file(packages):
    folder = packages("a", 'entry_point = "agent.py:Planner"')
    (folder / "a" / "agent.py").touch()
    (agent,) = in_folders([folder], skip=SKIP).agents
    assert (agent.spec.kind, agent.spec.entry_point) == (AgentKind.NATIVE, f"{folder / 'a' / 'agent.py'}:Planner")


def test_two_packages_with_one_id_are_told(packages, tmp_path):
    packages("a", 'id = "same"')
    found = in_folders([packages("b", 'id = "same"')], skip=SKIP)
    assert len(found.agents) == 1
    assert "agent 'same' is there already, in" in found.problems[0].sentence


@pytest.mark.req("S1-17")
def test_an_agent_of_the_configuration_wins_over_a_package_of_its_id(packages, tmp_path):
    folder = packages("a", "concurrency = 1")
    packages("b")
    found = discover(settings(tmp_path, "agents: [{id: a, concurrency: 7}]", package_folders=(folder,)))
    mine = {each.spec.id: each for each in found.agents if each.spec.id in {"a", "b"}}
    assert (mine["a"].spec.concurrency, mine["a"].discovery, mine["b"].discovery) == (7, "config", "package")
    assert mine["b"].spec.enabled
    assert found.problems == ()


def test_the_packages_that_came_with_us_are_found_in_order_and_none_is_started_unasked(tmp_path):
    found = discover(settings(tmp_path))
    assert found.problems == ()
    folders = {path.name for path in shipped_folder().iterdir() if path.is_dir()} - set(SKIP)
    assert {Path(each.origin.file).parent.name for each in found.agents} == folders
    assert not any(each.spec.enabled for each in found.agents)


def test_one_that_came_with_us_is_started_if_the_settings_name_it(tmp_path):
    found = discover(settings(tmp_path, package_enabled=("echo",)))
    assert [(each.spec.id, each.discovery) for each in found.agents if each.spec.enabled] == [("echo", "shipped")]


def test_a_package_of_ones_own_wins_over_one_that_came_with_us(packages, tmp_path):
    found = discover(settings(tmp_path, package_folders=(packages("echo", "concurrency = 7"),)))
    assert [each.spec.concurrency for each in found.agents if each.spec.id == "echo"] == [7]
    assert found.problems == ()


@pytest.mark.req("S1-17")
@pytest.mark.req("S1-18")
def test_ports_are_their_own_else_those_of_their_place_if_wanted_else_ephemeral(tmp_path):
    text = "agents: [{id: a}, {id: b, port: 9000}, {id: c}, {id: d, service_url: 'http://d'}]"

    def ports(**fields):
        return [each.spec.port for each in discover(settings(tmp_path, text, **fields)).agents if each.discovery == "config"]

    assert ports() == [None, 9000, None, None]
    assert ports(deterministic_ports=True) == [8100, 9000, 8102, None]
    assert ports(deterministic_ports=True, agent_port_base=9100) == [9100, 9000, 9102, None]


def test_a_port_of_ones_place_that_is_taken_or_too_high_is_told(tmp_path):
    found = discover(settings(tmp_path, "agents: [{id: a}, {id: b, port: 8100}]", deterministic_ports=True))
    assert "agent 'a' has no port of its own, and that of its place, 8100, is the port of another agent" in found.problems[0].sentence
    found = discover(settings(tmp_path, "agents: [{id: a}, {id: b}]", deterministic_ports=True, agent_port_base=65535))
    assert [problem.agent for problem in found.problems if problem.agent in {"a", "b"}] == ["b"]


def test_two_agents_with_one_port_are_warned_unless_they_live_on_different_hosts(tmp_path):
    found = discover(settings(tmp_path, "agents: [{id: a, port: 9000}, {id: b, port: 9000}, {id: c, port: 9000, host: agents@there}]"))
    assert [warning.message for warning in found.warnings] == [
        "agent 'b' has port 9000, as 'a' has: only one of them can have it on one machine"
    ]


def test_the_restart_mode_of_the_fleet_is_that_of_agents_that_name_none(tmp_path):
    found = discover(settings(tmp_path, "agents: [{id: a}, {id: b, restart_mode: auto}]", restart_mode=RestartMode.RESPAWN))
    assert [each.spec.restart_mode for each in found.agents if each.discovery == "config"] == [RestartMode.RESPAWN, RestartMode.AUTO]


def test_what_is_changed_is_found_the_next_time(tmp_path):
    chosen = settings(tmp_path, "agents: [{id: a}]")
    assert "b" not in ids(discover(chosen))
    (tmp_path / "fleet.yaml").write_text("agents: [{id: b}]\nruntime: {nonsense: 1}")
    found = discover(chosen)
    assert "b" in ids(found)
    assert "runtime.nonsense is no setting" in found.problems[0].sentence
