"""Configuration files: four worlds, one configuration; a mistake is a sentence that says where; one broken agent stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orchestrator.configuration import find, read, tree
from orchestrator.configuration.documents import Unreadable
from orchestrator.configuration.keys import ALIASES, KEYS, NOT_USED, SECTIONS
from orchestrator.errors import SettingsError
from orchestrator.settings import load
from schemas.agents import AgentKind
from schemas.settings import Settings

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SECRET = "rosebud-17"

TREE = """
environment: development
api:      {name: opmas-management-api, version: 1.0.0, host: 0.0.0.0, port: 8000, log_level: INFO}
manager:  {name: opmas-agent-manager, discovery_interval_s: 300, monitoring_interval_s: 10,
           cleanup_interval_s: 3600, heartbeat_timeout_s: 60, registry_ttl_s: 30, manager_url: http://127.0.0.1:8000}
bus:      {broker_url: redis://localhost:6379/0, result_backend: redis://localhost:6379/1,
           visibility_timeout_s: 3600, restore_interval_s: 10, restore_throttle: 1}
database: {url: sqlite:///orchestrator.db, pool_size: 5, max_overflow: 10}
business_database: {url: null}
auth:     {mode: none, manager_token: null, jwt_secret: null, jwt_ttl_s: 900}
runtime:  {log_directory: logs, drain_timeout_s: 30, terminate_grace_s: 5, start_timeout_s: 30,
           restart_mode: auto, max_restarts: 5, restart_window_s: 300, tick_interval_s: 0.1,
           flush_timeout_s: 10, execute_wait_s: 30, console_heartbeats: false}
idempotency: {cache_max_size: 1000, cache_ttl_s: 300, lease_s: 30, retention_s: 86400}
core:     {enabled: false, bus_maxsize: 1000, gc_check_interval_s: 1.0, session_idle_ttl_s: 300,
           gate_config: config/gate.yaml, metrics_port: 8080, adapters: []}
agents:
  - {id: my_agent, name: MyAgent, agent_type: test, kind: jlp, enabled: true, executable: python,
     args: [agents/my_agent.py], entry_point: null, port: null, service_url: null, concurrency: 1,
     heartbeat_interval_s: 15.0, agent_flush_interval_s: 60.0, drain_timeout_s: null,
     ack_policy: late, metadata: {}}
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """Read files that are given by their text."""
    monkeypatch.chdir(tmp_path)

    def write(**files: str):
        paths = []
        for name, text in files.items():
            path = Path(name.replace("__", "."))
            path.write_text(text)
            paths.append(path)
        return read(paths)

    return write


def sentences(problems) -> list[str]:
    return [problem.sentence for problem in problems]


def test_the_one_tree_is_read_as_it_was_designed(told):
    found = told(fleet__yaml=TREE)
    assert sentences(found.mistakes + found.problems) == []
    assert sentences(found.warnings) == ["fleet.yaml:15: core is not used: reflexes have a file of their own"]
    settings = load({"ORCHESTRATOR_CONFIG": "fleet.yaml"})
    assert (settings.api_name, settings.api_version, settings.api_host, settings.api_port) == (
        "opmas-management-api",
        "1.0.0",
        "0.0.0.0",
        8000,
    )
    assert (settings.broker_url, settings.result_backend) == ("redis://localhost:6379/0", "redis://localhost:6379/1")
    assert (settings.database_pool_size, settings.database_max_overflow) == (5, 10)
    assert (settings.agent_drain_s, settings.restarts_max, settings.host_tick_s, settings.lease_s) == (30, 5, 0.1, 30)
    assert settings.manager_tokens == ()
    (agent,) = found.agents
    assert (agent.spec.id, agent.spec.type, agent.spec.kind, agent.spec.args) == (
        "my_agent",
        "test",
        AgentKind.CHILD,
        ("agents/my_agent.py",),
    )
    assert (agent.origin.file, agent.origin.line) == ("fleet.yaml", 18)


@pytest.mark.req("S0-22")
@pytest.mark.req("S0-24")
def test_a_plugin_is_a_child_with_its_label_as_id():
    found = read([DEPLOY / "plugins.example.toml"])
    assert sentences(found.mistakes + found.problems + found.warnings) == []
    (agent,) = (each.spec for each in found.agents)
    assert (agent.id, agent.kind, agent.executable, agent.args) == ("my_agent", AgentKind.CHILD, "python", ("agents/my_agent.py",))
    assert (agent.enabled, agent.heartbeat_interval_s, agent.flush_interval_s) == (True, 15.0, 60.0)


@pytest.mark.req("S0-25")
def test_a_plugin_that_says_nothing_of_its_intervals_has_15_and_60_seconds(told):
    found = told(
        plugins__toml='[plugins.a]\nplugin_type = "agent"\nexecutable = "x"\n[plugins.b]\nplugin_type = "agent"\nexecutable = "x"\nheartbeat_interval_s = 0.25\n'
    )
    assert [(each.spec.heartbeat_interval_s, each.spec.flush_interval_s) for each in found.agents] == [(15.0, 60.0), (0.25, 60.0)]


@pytest.mark.req("S0-23")
def test_only_plugins_of_the_type_agent_are_started_and_one_without_a_type_is_an_error(told):
    found = told(
        plugins__toml=(
            '[plugins.off]\nenabled = false\nplugin_type = "agent"\nexecutable = "x"\n'
            '[plugins.other]\nplugin_type = "agnet"\nexecutable = "x"\n'
            '[plugins.missing]\nexecutable = "x"\n'
        )
    )
    assert [(each.spec.id, each.spec.enabled) for each in found.agents] == [("off", False)]
    assert sentences(found.warnings) == [
        "plugins.toml:6: plugins.other has the plugin_type 'agnet', and only \"agent\" is started; did you mean 'agent'?"
    ]
    assert sentences(found.problems) == [
        "plugins.toml:8: agent 'missing': has no plugin_type, which must be \"agent\" for a plugin that is to be started"
    ]


@pytest.mark.req("S1-37")
@pytest.mark.req("S1-38")
def test_agents_config_json_names_services_and_the_runtime():
    found = read([DEPLOY / "agents.config.example.json"])
    assert sentences(found.mistakes + found.problems + found.warnings) == []
    assert [(each.spec.id, each.spec.port, each.spec.kind, each.spec.entry_point) for each in found.agents] == [
        ("planner", 8100, AgentKind.HTTP, "agents/planner.py"),
        ("executor", 8101, AgentKind.HTTP, "agents/executor.py"),
    ]
    assert found.agents[0].spec.metadata == {"defaultModel": "small"}
    assert (found.agents[0].spec.name, found.agents[0].spec.description) == ("Planner", "Plans what is to be done")
    assert found.values == {"manager_url": "http://127.0.0.1:8000", "log_directory": "logs", "agent_drain_s": 30}


@pytest.mark.req("S1-37")
def test_agents_config_json_may_say_what_nobody_knows_and_is_warned(told):
    found = told(
        agents__config__json='{"agents": [{"id": "a", "entryPoint": "a.py", "colour": "red"}],\n "runtime": {"drainTimout": 3}, "extra": {}}'
    )
    assert [each.spec.id for each in found.agents] == ["a"]
    assert sentences(found.warnings) == [
        "agents.config.json:1: agent 'a': colour is nothing that an agent can say",
        "agents.config.json:2: runtime.drainTimout is no setting; did you mean 'drainTimeout'?",
        "agents.config.json:2: extra is no section of settings",
    ]


@pytest.mark.req("S1-38")
@pytest.mark.req("S1-39")
@pytest.mark.parametrize("key", ["drainTimeout", "drainTimeoutSeconds", "drain_timeout_s"])
def test_the_drain_time_has_three_spellings_for_the_fleet_and_for_an_agent(told, key):
    found = told(agents__config__json=json.dumps({"agents": [{"id": "a", "entryPoint": "a.py", key: 600}], "runtime": {key: 12}}))
    assert sentences(found.mistakes + found.problems + found.warnings) == []
    assert (found.values["agent_drain_s"], found.agents[0].spec.drain_timeout_s) == (12, 600)


@pytest.mark.req("S1-18")
def test_port_0_is_an_ephemeral_one_as_none_is(told):
    found = told(agents__config__json='{"agents": [{"id": "a", "entryPoint": "a.py", "port": 0}]}')
    assert found.agents[0].spec.port is None


@pytest.mark.parametrize("entry_point", ["agents.planner:Planner", "agents/planner.py:Planner"])
def test_an_entry_point_that_is_a_class_makes_a_native_agent(told, entry_point):
    found = told(agents__config__json=json.dumps({"agents": [{"id": "a", "entryPoint": entry_point}]}))
    assert found.agents[0].spec.kind is AgentKind.NATIVE


@pytest.mark.req("S2-14")
@pytest.mark.req("S2-15")
def test_management_api_yaml_is_the_api_and_the_database():
    found = read([DEPLOY / "management_api.example.yaml"])
    assert sentences(found.mistakes + found.problems) == []
    settings = load({"ORCHESTRATOR_CONFIG": str(DEPLOY / "management_api.example.yaml")})
    assert (settings.api_name, settings.api_version) == ("opmas-management-api", "1.0.0")
    assert (settings.api_host, settings.api_port, settings.api_log_level) == ("0.0.0.0", 8000, "INFO")
    assert (settings.database_url, settings.database_pool_size, settings.database_max_overflow) == (
        "postgresql+asyncpg://user:pass@localhost/opmas",
        5,
        10,
    )


@pytest.mark.req("S2-16")
@pytest.mark.req("S2-46")
def test_a_nats_server_becomes_celerys_broker_with_a_warning_that_says_so():
    found = read([DEPLOY / "management_api.example.yaml"])
    (warning,) = sentences(found.warnings)
    assert "management_api.example.yaml:14: nats.url becomes bus.broker_url = redis://localhost:6379/0" in warning
    assert "change-me" not in warning
    assert found.values["broker_url"] == "redis://localhost:6379/0"


@pytest.mark.req("S2-16")
def test_a_nats_section_that_names_a_broker_of_ours_gives_it_its_user_and_tls(told):
    found = told(m__yaml="nats: {url: 'rediss://bus:6380/2', user: opmas, password: 'p@ss', tls_verify: false}")
    assert found.values["broker_url"] == "rediss://opmas:p%40ss@bus:6380/2?ssl_cert_reqs=CERT_NONE"


def test_a_nats_section_never_wins_over_a_broker_that_a_file_names(told):
    found = told(fleet__yaml="bus: {broker_url: 'redis://here/1'}", m__yaml="nats: {url: 'nats://localhost:4222'}")
    assert found.values["broker_url"] == "redis://here/1"


@pytest.mark.req("S2-17")
@pytest.mark.req("S2-30")
def test_agent_manager_yaml_is_the_manager_and_its_intervals(told):
    settings = load({"ORCHESTRATOR_CONFIG": str(DEPLOY / "agent_manager.example.yaml")})
    assert (settings.manager_name, settings.log_level, settings.api_name) == ("opmas-agent-manager", "INFO", "orchestrator-api")
    assert (settings.discovery_interval_s, settings.monitoring_interval_s, settings.cleanup_interval_s) == (300, 10, 3600)
    changed = told(agent_manager__yaml="service: {name: x, discovery_interval: 30}")
    assert changed.values == {"manager_name": "x", "discovery_interval_s": 30}


def test_all_examples_load_and_together_make_one_configuration():
    paths = sorted(DEPLOY.glob("*.example.*"))
    assert len(paths) == 5
    for path in paths:
        assert sentences(read([path]).mistakes + read([path]).problems) == [], path.name
    together = read(paths)
    assert sentences(together.mistakes) == []
    assert {each.spec.id for each in together.agents} == {"my_agent", "planner", "executor"}
    assert ["agent 'my_agent' is there already" in text for text in sentences(together.problems)] == [True], (
        "once in the fleet, once as plugin"
    )


@pytest.mark.parametrize(
    "name, text, expected",
    [
        (
            "fleet__yaml",
            "runtime:\n  drain_timout_s: 3\n",
            "fleet.yaml:2: runtime.drain_timout_s is no setting; did you mean 'drain_timeout_s'?",
        ),
        ("fleet__yaml", "runtime:\n  drain_timeout_s: 30s\n", "fleet.yaml:2: runtime.drain_timeout_s must be a number, but is '30s'"),
        (
            "fleet__toml",
            "[manager]\n\ndiscovery_interval_s = -1\n",
            "fleet.toml:3: manager.discovery_interval_s must be greater than 0, but is -1",
        ),
        ("fleet__json", '{"api": {"name": "x",\n\t"port": 80000}}', "fleet.json:2: api.port must be at most 65535, but is 80000"),
        ("fleet__yaml", "api: {port: yes}", "fleet.yaml:1: api.port must not be true"),
        ("fleet__yaml", "api: {version: 1.0}", "fleet.yaml:1: api.version must be text, but is 1.0; put it in quotes"),
        ("fleet__yaml", "enviroment: production", "fleet.yaml:1: enviroment is no section of settings; did you mean 'environment'?"),
        ("fleet__yaml", "broker_url: redis://x", "fleet.yaml:1: broker_url is no section of settings; did you mean 'bus.broker_url'?"),
        ("fleet__yaml", "lease_s: 3", "fleet.yaml:1: lease_s is no section of settings; did you mean 'engine.lease_s'?"),
        (
            "fleet__yaml",
            "runtime: {heartbeat_timeout_s: 3}",
            "fleet.yaml:1: runtime.heartbeat_timeout_s is no setting; did you mean 'manager.heartbeat_timeout_s'?",
        ),
        ("fleet__yaml", "environment: prodution", "must be 'development' or 'production', but is 'prodution'; did you mean 'production'?"),
        (
            "fleet__yaml",
            "a: 1\nb: [1,\nc: 2\n",
            "fleet.yaml:4: is not valid YAML: did not find expected ',' or ']', in what begins in line 2",
        ),
        ("fleet__yaml", "a: \x01", "fleet.yaml: is not valid YAML"),
        ("fleet__yaml", "api: {port: 1}\napi: {port: 2}\n", "fleet.yaml:2: has the key 'api' twice in one table"),
        ("fleet__yaml", "api: {1: 2}", "fleet.yaml:1: has a key that is not text: 1; put it in quotes"),
        (
            "fleet__yaml",
            "api: !!python/object/apply:os.system [true]",
            "fleet.yaml:1: is not valid YAML: could not determine a constructor",
        ),
        ("fleet__yaml", "- 1", "fleet.yaml: must be a table of keys and values"),
        ("fleet__yaml", "agents: {a: 1}", "fleet.yaml:1: agents must be a list, one entry an agent"),
        ("fleet__yaml", "runtime: fast", "fleet.yaml:1: runtime must be a table of keys and values"),
        ("fleet__toml", "[api]\nport = \n", "fleet.toml:2: is not valid TOML: Invalid value"),
        ("fleet__json", '{\n"a": 1,,}', "fleet.json:2: is not valid JSON"),
        ("fleet__json", '{"api": {"port": NaN}}', "is not valid JSON: NaN is no number"),
        ("fleet__json", '{"api": {}, "api": {}}', "has the key 'api' twice in one table"),
        ("fleet__ini", "[api]", "fleet.ini: the name must end in .toml, .yaml, .yml or .json"),
        ("fleet__yaml", "manager: {package_skip: test}", "fleet.yaml:1: manager.package_skip must be a list, but is 'test'"),
    ],
)
def test_a_mistake_in_the_settings_is_one_sentence_that_says_where_and_refuses_to_start(told, name, text, expected):
    found = told(**{name: text})
    assert len(found.mistakes) == 1, sentences(found.mistakes)
    assert expected in found.mistakes[0].sentence
    with pytest.raises(SettingsError) as caught:
        load({"ORCHESTRATOR_CONFIG": name.replace("__", ".")})
    assert caught.value.message == found.mistakes[0].sentence


def test_what_contradicts_itself_refuses_to_start_unless_the_environment_mends_it(told):
    told(fleet__yaml="manager: {registry_ttl_s: 100}")
    with pytest.raises(SettingsError, match="an agent leaves the registry before it counts as inactive"):
        load({"ORCHESTRATOR_CONFIG": "fleet.yaml"})
    assert load({"ORCHESTRATOR_CONFIG": "fleet.yaml", "ORCHESTRATOR_HEARTBEAT_TIMEOUT_S": "200"}).registry_ttl_s == 100


def test_several_mistakes_are_counted(told):
    told(fleet__yaml="api: {prot: 1, hots: 2}\nruntime: {drain_timeout_s: soon}")
    with pytest.raises(
        SettingsError,
        match=r"fleet.yaml:1: api.prot is no setting; did you mean 'port'\? \(2 more: `orchestrator config check` shows them\)",
    ):
        load({"ORCHESTRATOR_CONFIG": "fleet.yaml"})


def test_a_file_that_is_not_there_refuses_to_start(tmp_path):
    with pytest.raises(SettingsError, match=r"nowhere\.yaml: cannot be read: No such file or directory"):
        load({"ORCHESTRATOR_CONFIG": str(tmp_path / "nowhere.yaml")})


@pytest.mark.parametrize(
    "entry, expected",
    [
        (
            "{id: bad, heartbeat_intervall_s: 3}",
            "heartbeat_intervall_s is nothing that an agent can say; did you mean 'heartbeat_interval_s'?",
        ),
        ("{id: bad, heartbeat_interval_s: -1}", "heartbeat_interval_s must be greater than 0, but is -1"),
        ("{id: bad, drainTimeout: soon}", "drain_timeout_s must be a number, but is 'soon'"),
        ("{id: bad, kind: child}", "agent 'bad' is a child, so it needs an executable"),
        ("{id: bad, kind: chidl}", "kind must be 'native', 'child' or 'http', but is 'chidl'; did you mean 'child'?"),
        ("{id: bad, executable: x, args: a b}", "args must be a list of arguments, not one string: nothing splits it"),
        ("{id: bad, concurrency: true}", "concurrency must not be true"),
        ("{id: bad, port: 80000}", "port must be at most 65535, but is 80000"),
        ("{id: bad, drain_timeout_s: 1, drainTimeout: 2}", "drainTimeout and drain_timeout_s are the same thing, said twice"),
        ("{id: bad, ack_policy: early}", "ack_policy must be 'late', but is 'early'"),
        ("{id: good}", "agent 'good' is there already, in fleet.yaml:2; give one of them another id"),
        ("{id: 'b a d'}", "id must consist of letters, digits, `.`, `_` and `-`"),
        ("{id: 7}", "id must be text, but is 7; put it in quotes"),
        ("{type: x}", "agents[1]: has no id"),
        ("7", "agents[1] must be a table of keys and values"),
    ],
)
def test_a_broken_agent_is_told_and_the_others_load(told, entry, expected):
    found = told(fleet__yaml=f"agents:\n  - {{id: good}}\n  - {entry}\n  - {{id: also-good}}\n")
    assert [each.spec.id for each in found.agents] == ["good", "also-good"]
    assert found.mistakes == ()
    assert expected in sentences(found.problems)[0]
    assert sentences(found.problems)[0].startswith("fleet.yaml:3: ")
    load({"ORCHESTRATOR_CONFIG": "fleet.yaml"})


def test_an_id_may_be_used_once_in_all_files(told):
    found = told(one__yaml="agents: [{id: a}]", two__yaml="agents: [{id: b}, {id: a}]")
    assert [each.spec.id for each in found.agents] == ["a", "b"]
    assert sentences(found.problems) == ["two.yaml:1: agent 'a' is there already, in one.yaml:1; give one of them another id"]


def test_the_environment_wins_over_the_file_and_a_later_file_over_an_earlier_one(told):
    told(one__yaml="api: {port: 1, host: one}", two__yaml="api: {port: 2}")
    files = {"ORCHESTRATOR_CONFIG": "one.yaml:two.yaml"}
    assert (load(files).api_port, load(files).api_host, load(files).api_log_level) == (2, "one", "INFO")
    assert load({**files, "ORCHESTRATOR_API_PORT": "3"}).api_port == 3
    assert load({**files, "ORCHESTRATOR_API_PORT": "3"}, api_port=4).api_port == 4


@pytest.mark.req("S1-39")
def test_the_manager_token_of_the_environment_wins_over_that_of_the_file(told):
    told(fleet__yaml="auth: {manager_token: from-file}")
    assert load({"ORCHESTRATOR_CONFIG": "fleet.yaml"}).manager_tokens == ("from-file",)
    assert load({"ORCHESTRATOR_CONFIG": "fleet.yaml", "MANAGER_TOKEN": "from-environment"}).manager_tokens == ("from-environment",)


@pytest.mark.parametrize(
    "text",
    [
        f"auth: {{manager_token: [{SECRET}]}}",
        f"auth: {{manager_tokne: {SECRET}}}",
        f"auth: {SECRET}",
        f"auth: {{jwt_secret: {{a: {SECRET}}}}}",
        f"database: {{pool_size: 'postgresql://me:{SECRET}@db/x'}}",
        f"auth:\n  manager_token: '{SECRET}\n  x: [}}",
        f"nats: {{url: 'nats://x', user: me, password: {SECRET}}}",
        f"nats: {{url: 'redis://x', user: me, password: {SECRET}}}",
        f"agents: [{{id: a, executable: x, args: '--password={SECRET}'}}]",
        f"agents: [{{id: a, metadata: {SECRET}}}]",
    ],
)
def test_no_sentence_shows_a_secret(told, text):
    found = told(fleet__yaml=text)
    spoken = sentences(found.mistakes + found.problems + found.warnings)
    assert spoken
    assert SECRET not in " ".join(spoken)


def test_the_file_of_the_working_directory_is_found(tmp_path):
    assert find(tmp_path) == ()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "agents.config.json").write_text("{}")
    assert find(tmp_path) == (tmp_path / "config" / "agents.config.json",)
    (tmp_path / "config" / "fleet.toml").touch()
    assert find(tmp_path) == (tmp_path / "config" / "fleet.toml",)
    (tmp_path / "fleet.yaml").touch()
    assert find(tmp_path) == (tmp_path / "fleet.yaml",)
    (tmp_path / "fleet.json").touch()
    with pytest.raises(Unreadable, match=r"fleet\.yaml and fleet\.json compete"):
        find(tmp_path)


def test_every_setting_has_one_key_and_every_alias_leads_to_one():
    assert sorted(KEYS.values()) == sorted(set(Settings.model_fields) - {"config"})
    assert set(ALIASES.values()) <= set(KEYS)
    assert not set(NOT_USED) & set(KEYS)
    assert set(SECTIONS) == {"api", "manager", "bus", "database", "business_database", "auth", "runtime", "idempotency", "engine"}


def test_the_tree_shows_every_setting_and_no_secret(tmp_path):
    settings = load({"MANAGER_TOKEN": SECRET}, database_url=f"postgresql://me:{SECRET}@db/x")
    shown = tree(settings)
    assert SECRET not in json.dumps(shown)
    assert shown["database"]["url"] == "postgresql://me:***@db/x"
    assert (shown["environment"], shown["runtime"]["drain_timeout_s"]) == ("development", 30.0)


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 100_000,
        "a: " + "[" * 100_000 + "]" * 100_000,
        "a: &a [x,x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join([f'*{b}'] * 10)}]\n" for b, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {b: *a}",
    ],
    ids=["open brackets", "deep", "aliases of aliases", "itself"],
)
def test_yaml_that_is_made_to_explode_is_refused(told, text):
    (mistake,) = told(fleet__yaml=text).mistakes
    assert "deep" in mistake.message or "values" in mistake.message


@pytest.mark.parametrize("name, text", [("f__toml", "a=" + "[" * 100_000), ("f__json", '{"a":' + "[" * 100_000)])
def test_other_files_that_are_too_deep_are_refused(told, name, text):
    assert "deep" in told(**{name: text}).mistakes[0].message


def test_a_file_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "fleet.yaml").write_bytes(b"\xff\xfe\x00")
    assert read([tmp_path / "fleet.yaml"]).mistakes[0].message == "is not UTF-8 text"
    (tmp_path / "dir.yaml").mkdir()
    assert "Is a directory" in read([tmp_path / "dir.yaml"]).mistakes[0].message


def test_too_many_files_are_a_mistake(tmp_path):
    found = read(tmp_path / f"{number}.yaml" for number in range(102))
    assert found.mistakes[0].sentence == f"{tmp_path}/100.yaml: is one file too many; at most 100 are read"


def test_a_thousand_agents_are_read_in_a_moment(tmp_path):
    (tmp_path / "fleet.yaml").write_text(
        "agents:\n" + "".join(f"  - {{id: a{n}, kind: child, executable: x, args: [y]}}\n" for n in range(1_000))
    )
    assert len(read([tmp_path / "fleet.yaml"]).agents) == 1_000
