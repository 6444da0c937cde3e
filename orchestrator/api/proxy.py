"""The way to agents that are services; law: their status and body are passed on as they are, and silence is unavailability, told in time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

import httpx
import orjson
from fastapi import Response

from orchestrator.errors import FleetError
from orchestrator.telemetry import current_trace
from schemas.agents import Agent
from schemas.codes import ErrorCode
from schemas.settings import Settings

CONNECTIONS_MAX = 100
IDLE_MAX = 20
CONNECT_S = 2.0
POOL_S = 1.0  # how long a call waits for one of the connections
ANSWER_BYTES_MAX = 16 * 1024 * 1024
JSON = "application/json"


class Proxy:
    """Calls services. Raises FleetError: agent_unavailable when nobody answers, or not in time."""

    def __init__(self, settings: Settings) -> None:
        token = next(iter(settings.manager_tokens), "")
        self._answer_s = settings.remote_control_s
        self._client = httpx.Client(
            headers={"X-Manager-Token": token} if token else {},
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=IDLE_MAX),
            follow_redirects=False,
            trust_env=False,
        )

    def close(self) -> None:
        """Give the connections back."""
        self._client.close()

    def get(self, agent: Agent, path: str, params: Mapping[str, Any] | None = None) -> Response:
        """What a service answers to a question."""
        return self._passed(agent, "GET", path, params=params, answer_s=self._answer_s)

    def execute(self, agent: Agent, body: Mapping[str, Any], *, request_id: UUID, answer_s: float) -> Response:
        """What a service answers to a work. The request id goes along, so that a service that remembers does nothing twice."""
        headers = {"Idempotency-Key": str(request_id)}
        return self._passed(agent, "POST", "/execute", body=body, headers=headers, answer_s=answer_s)

    def _passed(
        self,
        agent: Agent,
        method: str,
        path: str,
        *,
        answer_s: float,
        body: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        trace = current_trace()
        along = dict(headers or {}) | ({"traceparent": trace.traceparent} if trace else {})
        timeout = httpx.Timeout(answer_s, connect=min(CONNECT_S, answer_s), pool=POOL_S)
        url = address(agent)
        try:
            with self._client.stream(method, url + path, json=body, params=params, headers=along, timeout=timeout) as reply:
                content = _read(reply, agent)
        except httpx.HTTPError as error:
            message = f"the service of agent {agent.id!r} at {url} does not answer: {type(error).__name__}"
            raise FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE) from error
        return Response(_as_json(content), reply.status_code, media_type=JSON)


def address(agent: Agent) -> str:
    """Where a service answers: as it registered, as it was written down, or at its port on this machine. Raises FleetError."""
    found = agent.service_url or agent.spec.service_url or (f"http://127.0.0.1:{agent.spec.port}" if agent.spec.port else "")
    if not found:
        message = f"nobody knows where the service of agent {agent.id!r} answers; it has not registered and has no port"
        raise FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE)
    return found.rstrip("/")


def _read(reply: httpx.Response, agent: Agent) -> bytes:
    chunks, size = [], 0
    for chunk in reply.iter_bytes():
        size += len(chunk)
        if size > ANSWER_BYTES_MAX:
            message = f"the service of agent {agent.id!r} answers more than {ANSWER_BYTES_MAX:,} bytes; it should pass a reference"
            raise FleetError(message, code=ErrorCode.EXECUTION_FAILED)
        chunks.append(chunk)
    return b"".join(chunks)


def _as_json(content: bytes) -> bytes:
    """The body as it is; what is no JSON becomes a JSON text: all our bodies are JSON."""
    try:
        orjson.loads(content)
    except orjson.JSONDecodeError:
        return orjson.dumps({"output": content.decode("utf-8", "replace")})
    return content
