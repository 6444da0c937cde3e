"""Settings: from the environment, handed to child processes as they are, secrets never shown."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr

from orchestrator.errors import SettingsError
from orchestrator.settings import current, environment, load, origins, read_anew
from schemas.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
SECRET = "rosebud-17"


def handed_on(settings: Settings) -> Settings:
    ours = {key: text for key, text in environment(settings).items() if key.startswith("ORCHESTRATOR_")}
    return load(ours)


def test_a_child_process_loads_the_settings_of_its_parent(tmp_path, monkeypatch):
    monkeypatch.setenv("DRAIN_TIMEOUT_SECONDS", "7")
    monkeypatch.setenv("ORCHESTRATOR_LEASE_S", "99")
    given = load(
        {"MANAGER_TOKEN": f"{SECRET},old"},
        home=tmp_path,
        include=("one", "two"),
        package_folders=(tmp_path / "a", tmp_path / "b"),
        package_skip=(),
        cache=False,
        log_directory=tmp_path / "logs",
        restart_mode="execv",
        lease_s=15.0,
    )
    assert handed_on(given) == given
    assert environment(given)["ORCHESTRATOR_LEASE_S"] == "15.0", "also what is the default: a file may say something else"


@pytest.mark.req("S1-39")
def test_the_drain_time_has_a_name_that_other_systems_know():
    assert load({"DRAIN_TIMEOUT_SECONDS": "12"}).drain_override_s == 12
    assert load({"DRAIN_TIMEOUT_SECONDS": "12", "ORCHESTRATOR_DRAIN_OVERRIDE_S": "5"}).drain_override_s == 5
    assert load({"DRAIN_TIMEOUT_SECONDS": ""}).drain_override_s is None


@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"DRAIN_TIMEOUT_SECONDS": "soon"}, "setting drain_override_s (DRAIN_TIMEOUT_SECONDS) must be a number, but is 'soon'"),
        ({"ORCHESTRATOR_DISCOVERY_INTERVAL_S": "-1"}, "(ORCHESTRATOR_DISCOVERY_INTERVAL_S) must be greater than 0, but is '-1'"),
        ({"ORCHESTRATOR_ENVIRONMENT": "prod"}, "must be 'development' or 'production', but is 'prod'; did you mean 'production'?"),
        ({"ORCHESTRATOR_API_PROT": "1"}, "did you mean ORCHESTRATOR_API_PORT?"),
        ({"ORCHESTRATOR_REGISTRY_TTL_S": "90"}, "registry_ttl_s (90) must not be longer than heartbeat_timeout_s (60)"),
    ],
)
def test_what_is_wrong_is_one_sentence(variables, sentence):
    with pytest.raises(SettingsError) as caught:
        load(variables)
    assert sentence in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.req("S1-26")
def test_the_manager_token_may_be_a_list_so_that_it_can_be_changed_without_a_pause():
    assert load({"MANAGER_TOKEN": " new , old,"}).manager_tokens == ("new", "old")
    assert load({}).manager_tokens == ()


def test_secrets_are_never_shown():
    settings = load(
        {"MANAGER_TOKEN": SECRET, "ORCHESTRATOR_JWT_SECRET": SECRET},
        database_url=f"postgresql://me:{SECRET}@db/x",
        broker_url=f"redis://:{SECRET}@broker/0;redis://me:{SECRET}@other/0",
    )
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json(include={"manager_token", "jwt_secret"})
    assert "me:***@db" in repr(settings)
    assert settings.manager_token == SecretStr(SECRET)


def test_a_secret_is_not_shown_by_an_error(monkeypatch):
    with pytest.raises(SettingsError) as caught:
        load({"ORCHESTRATOR_POLL_S": f"redis://:{SECRET}@broker/0"})
    assert SECRET not in caught.value.message


@pytest.mark.req("S2-30")
@pytest.mark.req("S2-17")
def test_the_intervals_of_three_different_jobs_are_three_settings():
    settings = Settings()
    assert (settings.discovery_interval_s, settings.monitoring_interval_s, settings.cleanup_interval_s) == (300, 10, 3600)
    assert (settings.heartbeat_timeout_s, settings.host_tick_s) == (60, 0.1)


def test_every_setting_is_read_by_somebody():
    packages = [path for folder in ("orchestrator", "workers", "beat") for path in (ROOT / folder).rglob("*.py")]
    text = "\n".join(path.read_text() for path in [*packages, ROOT / "schemas" / "settings.py"] if "configuration" not in path.parts)
    assert [name for name in Settings.model_fields if not re.search(rf"\.{name}\b", text)] == []


def test_paths_are_handed_on_as_absolute_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert handed_on(load({}, package_folders=(Path("agents"),))).package_folders == (tmp_path / "agents",)


def test_a_file_of_the_working_directory_is_read_and_handed_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ORCHESTRATOR_CONFIG", raising=False)
    (tmp_path / "fleet.yaml").write_text("api: {port: 8123}")
    settings = read_anew()
    assert (settings.api_port, settings.config) == (8123, (Path("fleet.yaml"),))
    assert environment(settings)["ORCHESTRATOR_CONFIG"] == str(tmp_path / "fleet.yaml")
    assert origins()["api_port"] == "fleet.yaml:1"
    assert environment(load({}))["ORCHESTRATOR_CONFIG"] == "", "whoever was started without a file finds none"
    assert read_anew(home=tmp_path / "there").database_url == f"sqlite:///{tmp_path / 'there' / 'orchestrator.db'}"
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", "")
    assert read_anew().api_port == 8000


def test_what_is_doubtful_or_broken_is_logged_when_a_process_reads_its_settings(tmp_path, monkeypatch, caplog):
    (tmp_path / "fleet.yaml").write_text("nats: {url: 'nats://x', password: rosebud-17}\nagents: [{id: a, prot: 1}]")
    monkeypatch.setenv("ORCHESTRATOR_CONFIG", str(tmp_path / "fleet.yaml"))
    current.cache_clear()
    try:
        assert current().broker_url == "redis://localhost:6379/0"
    finally:
        current.cache_clear()
    assert "nats.url becomes bus.broker_url" in caplog.text
    assert "agent 'a': prot is nothing that an agent can say; did you mean 'port'?" in caplog.text
    assert SECRET not in caplog.text
