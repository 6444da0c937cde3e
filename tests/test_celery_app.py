"""Our application and adopted ones: what was set stays, what was left open is filled, and who cannot start says why in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from celery import Celery

from orchestrator.celery import Orchestrator, orchestrator_of
from orchestrator.errors import OrchestratorError, SettingsError
from orchestrator.settings import load
from orchestrator.store import Store

ROOT = Path(__file__).resolve().parent.parent
DEAD_BROKER = "redis://127.0.0.1:1/0"
DEAD_POSTGRES = "postgresql://somebody:secret@127.0.0.1:1/nothing"


def celery(*words: str, app: str = "orchestrator", cwd: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a Celery command as people do, in a folder of their own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORCHESTRATOR_")}
    environment |= {f"ORCHESTRATOR_{name.upper()}": value for name, value in settings.items()} | {"PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "celery", "-A", app, *words]
    return subprocess.run(argv, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def settings(tmp_path):
    return load({}, home=tmp_path / "home", broker_url="memory://")


@pytest.fixture
def yours() -> Celery:
    return Celery("shop", broker="memory://yours", set_as_current=False)


def test_importing_the_package_is_light():
    code = "import sys, orchestrator; from orchestrator import workflow; print([m for m in ('celery', 'sqlalchemy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.req("DC-03")
def test_the_package_is_an_application_for_celery(tmp_path):
    report = celery("report", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    assert "workers.pool:FleetPool" in report.stdout
    assert "beat.scheduler:StoreScheduler" in report.stdout
    assert "task_ignore_result: True" in report.stdout
    assert list(tmp_path.iterdir()) == [], "looking leaves nothing behind"


@pytest.mark.req("DC-10")
def test_how_soon_redis_hands_on_what_a_dead_worker_had_is_a_setting(settings):
    chosen = settings.model_copy(update={"broker_url": "redis://127.0.0.1:1/0", "visibility_timeout_s": 60.0, "restore_interval_s": 5.0})
    yours = Celery("shop", set_as_current=False)
    Orchestrator(yours, settings=chosen)
    options = yours.conf.broker_transport_options
    assert (options["visibility_timeout"], options["unacked_restore_interval"], options["unacked_restore_throttle"]) == (60, 5, 1)


def test_modules_of_include_are_imported_and_results_are_kept_only_if_a_backend_is_named(tmp_path):
    (tmp_path / "shop_tasks.py").write_text("from celery import shared_task\n@shared_task\ndef sell(): ...\nprint('imported')\n")
    report = celery("report", cwd=tmp_path, include="shop_tasks", result_backend="cache+memory://").stdout
    assert "imported" in report
    assert "result_backend: 'cache+memory://'" in report
    assert "task_ignore_result: False" in report


def test_what_your_application_has_set_stays(yours, settings):
    yours.conf.update(worker_pool="solo", beat_scheduler="celery.beat:PersistentScheduler", task_acks_late=False)
    Orchestrator(yours, settings=settings)
    yours.conf.broker_transport_options = {"visibility_timeout": 7}

    assert yours.conf.broker_url == "memory://yours"
    assert yours.conf.worker_pool == "solo"
    assert yours.conf.beat_scheduler == "celery.beat:PersistentScheduler"
    assert yours.conf.broker_transport_options == {"visibility_timeout": 7}
    assert yours.conf.worker_consumer == "workers.consumer:FleetConsumer", "what it left open is ours"
    assert yours.conf.task_acks_late is False
    assert yours.conf.task_default_queue == "celery"


@pytest.mark.parametrize("early", [True, False])
def test_your_configuration_module_wins_whenever_it_is_read(yours, settings, early):
    config = {"worker_pool": "solo", "broker_transport_options": {"visibility_timeout": 7}}
    if early:
        yours.config_from_object(config)
        assert yours.conf.worker_pool == "solo"
    Orchestrator(yours, settings=settings)
    if not early:
        yours.config_from_object(config)
    assert yours.conf.worker_pool == "solo"
    assert yours.conf.beat_scheduler == "beat.scheduler:StoreScheduler"


def test_a_configuration_with_a_namespace_wins_too(yours, settings):
    Orchestrator(yours, settings=settings)
    yours.config_from_object({"CELERY_WORKER_POOL": "solo"}, namespace="CELERY")
    assert yours.conf.worker_pool == "solo"
    assert yours.conf.worker_consumer == "workers.consumer:FleetConsumer"


def test_your_tasks_stay_as_they_are(yours, settings):
    plain = Celery("plain", broker="memory://", set_as_current=False)
    Orchestrator(yours, settings=settings)
    for name in ("task_acks_late", "task_reject_on_worker_lost", "task_ignore_result", "task_serializer", "worker_prefetch_multiplier"):
        assert yours.conf[name] == plain.conf[name]


def test_workflows_of_your_application_wait_in_its_default_queue_unless_a_setting_says_otherwise(yours, settings):
    yours.conf.task_default_queue = "shop"
    assert Orchestrator(yours, settings=settings).settings.default_queue == "shop"
    named = load({"ORCHESTRATOR_DEFAULT_QUEUE": "flows"})
    assert Orchestrator(yours, settings=named).settings.default_queue == "flows"


def test_the_broker_of_the_settings_serves_an_application_without_one(settings):
    app = Celery("shop", set_as_current=False)
    ours = Orchestrator(app, settings=settings, database="sqlite:///somewhere.db")
    assert app.conf.broker_url == ours.settings.broker_url == "memory://"
    assert ours.settings.database_url == "sqlite:///somewhere.db"


def test_the_doorbell_reaches_whoever_answers(yours, settings):
    ours = Orchestrator(yours, settings=settings)
    doorbell = yours.tasks["orchestrator.doorbell"]
    doorbell("nobody answers yet")
    rung: list[str] = []
    ours.answer_doorbell = rung.append
    doorbell("orders")
    assert rung == ["orders"]


def test_an_application_finds_its_orchestrator_again(yours, settings):
    ours = Orchestrator(yours, settings=settings)
    assert orchestrator_of(yours) is ours
    with pytest.raises(SettingsError, match="Orchestrator"):
        orchestrator_of(Celery("stranger", set_as_current=False))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({}, "no embedded broker runs in"),
        ({"broker_url": DEAD_BROKER}, "cannot be reached"),
        ({"broker_url": "nonsense://x"}, "No such transport"),
        ({"database_url": "oracle://x"}, "is not supported"),
        ({"database_url": DEAD_POSTGRES}, "cannot be used"),
        ({"database_url": "sqlite:///empty.db"}, "Run `orchestrator db upgrade`"),
    ],
)
def test_what_is_wrong_is_one_sentence(wrong, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ours = Orchestrator(Celery("shop", set_as_current=False), settings=load({}, **wrong))
    with pytest.raises(OrchestratorError) as refused:
        ours.check()
    assert sentence in refused.value.message
    assert len(refused.value.message.splitlines()) == 1
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    "program, wrong, sentence",
    [
        ("worker", {"broker_url": DEAD_BROKER}, "cannot be reached"),
        ("beat", {"database_url": "sqlite:///empty.db"}, "Run `orchestrator db upgrade`"),
        ("worker", {"include": "no_such_module"}, "'no_such_module' of ORCHESTRATOR_INCLUDE cannot be found"),
        ("beat", {"databse_url": "x"}, "did you mean ORCHESTRATOR_DATABASE_URL?"),
    ],
)
def test_a_process_that_cannot_start_says_why_in_one_sentence(program, wrong, sentence, tmp_path):
    ended = celery(program, cwd=tmp_path, **wrong)
    assert ended.returncode == 1, ended.stderr
    assert sentence in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr


def test_an_error_inside_an_included_module_keeps_its_traceback(tmp_path):
    (tmp_path / "broken_tasks.py").write_text("import not_there\n")
    ended = celery("worker", cwd=tmp_path, include="broken_tasks")
    assert ended.returncode == 1
    assert "broken_tasks.py" in ended.stderr


def test_the_database_of_the_embedded_home_is_made_without_being_asked(settings):
    ours = Orchestrator(Celery("shop", broker="memory://", set_as_current=False), settings=settings)
    ours.check()
    Store.open(ours.settings.database_url).check_migrated()
