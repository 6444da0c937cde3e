"""`orchestrator api`: serve the management API; law: what is open to everybody is not served to everybody."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
import uvicorn

from orchestrator import settings as settings_module
from orchestrator.api import create_app
from orchestrator.api.admission import is_local
from orchestrator.errors import SettingsError
from orchestrator.settings import embedded_database
from orchestrator.store import Store
from orchestrator.telemetry import log_json
from schemas.settings import Settings

WORKERS_MAX = 32
GRACE_S = 10  # how long requests may go on when the server is told to stop
SILENT_S = 30  # after which a server process counts as hung; on a busy machine it takes some seconds to begin
APPLICATION = "orchestrator.api.server:application"

app = typer.Typer(add_completion=False)


@dataclass(frozen=True, slots=True)
class Certificates:
    """Files for TLS; with `ca` callers must show a certificate that it has signed."""

    certificate: Path | None = None
    key: Path | None = None
    ca: Path | None = None

    @property
    def options(self) -> dict[str, Any]:
        """For the server."""
        if self.certificate is None:
            return {}
        found: dict[str, Any] = {"ssl_certfile": self.certificate, "ssl_keyfile": self.key}
        return found | ({"ssl_ca_certs": str(self.ca), "ssl_cert_reqs": 2} if self.ca else {})  # 2: CERT_REQUIRED


@app.command()
def api(
    *,
    host: Annotated[str | None, typer.Option(help="Address to listen on, instead of ORCHESTRATOR_API_HOST.")] = None,
    port: Annotated[int | None, typer.Option(help="Port, instead of ORCHESTRATOR_API_PORT.", min=1, max=65535)] = None,
    workers: Annotated[int, typer.Option(help="Server processes.", min=1, max=WORKERS_MAX)] = 1,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM.", exists=True, dir_okay=False)] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.", exists=True, dir_okay=False)] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Callers must show a certificate that this authority has signed.", exists=True, dir_okay=False)
    ] = None,
) -> None:
    """Serve the management API: workflows, agents, works, audit, metrics. Its description is at /docs."""
    settings = settings_module.current()
    host, port = host or settings.api_host, port or settings.api_port
    certificates = Certificates(tls_cert, tls_key, tls_ca)
    check(settings, host, certificates)
    log_json(settings.api_log_level, service=settings.api_name)
    uvicorn.run(
        APPLICATION,
        factory=True,
        host=host,
        port=port,
        workers=workers,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
        timeout_worker_healthcheck=SILENT_S,
        **certificates.options,
    )


def check(settings: Settings, host: str, certificates: Certificates) -> None:
    """Raise SettingsError or DatabaseNotMigrated unless it may be served like this."""
    if settings.environment == "production" and settings.auth_mode == "none" and not is_local(host):
        raise SettingsError(
            f"in production the API is not served to others without authentication: it would listen on {host}, and auth_mode is none, so that "
            "anybody who reaches it could stop agents. Set ORCHESTRATOR_AUTH_MODE to token or jwt, or listen on 127.0.0.1."
        )
    if (certificates.key or certificates.ca) and not certificates.certificate:
        raise SettingsError("--tls-key and --tls-ca need --tls-cert")
    create_app(settings)  # says what is wrong with the settings here, once, and not in each server process
    with Store.of(settings) as store:
        if embedded_database(settings):
            settings.home.mkdir(parents=True, exist_ok=True)
            store.upgrade()
        else:
            store.check_migrated()
