"""An agent that is a service of its own, as the worker that hosts it sees it; law: what the service says is passed on, and silence is unavailability.

`ServiceAgent` stands in the worker for the service: works of its type are claimed, counted and remembered as those of any agent, and their
bodies are requests to `/execute`. The request id goes along, so that a service that remembers does nothing twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
from pydantic import ValidationError
from tenacity import Retrying, retry_if_exception_type, retry_if_result, stop_after_delay, wait_exponential, wait_fixed

from orchestrator.agent import Agent, WorkFailed, WorkRequest, WorkResult, info
from orchestrator.errors import FleetError
from schemas.agents import AgentSpec, Health
from schemas.messages import ErrorCode
from schemas.settings import Settings

CONNECT_S = 2.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024
WAIT_FIRST_S, WAIT_MAX_S = 0.05, 0.5

# What a status code of a service means to whoever asked for a work.
CODES: Mapping[int, tuple[ErrorCode, bool]] = {
    400: (ErrorCode.INVALID_REQUEST, False),
    401: (ErrorCode.UNAUTHORIZED, False),
    403: (ErrorCode.FORBIDDEN, False),
    404: (ErrorCode.UNKNOWN_WORK_TYPE, False),
    409: (ErrorCode.AGENT_UNAVAILABLE, True),  # paused or stopping: another time, or somebody else
    413: (ErrorCode.PAYLOAD_TOO_LARGE, False),
    503: (ErrorCode.AGENT_UNAVAILABLE, True),
}


class Service:
    """The HTTP face of one agent, spoken to. Raises FleetError (agent_unavailable) when nobody answers."""

    def __init__(self, agent_id: str, url: str, settings: Settings) -> None:
        token = next(iter(settings.manager_tokens), "")
        headers = {"User-Agent": settings.manager_name, **({"X-Manager-Token": token} if token else {})}
        self.agent_id, self.url = agent_id, url.rstrip("/")
        self._answer_s = settings.remote_control_s
        self._client = httpx.Client(
            base_url=self.url, headers=headers, timeout=httpx.Timeout(self._answer_s, connect=CONNECT_S), trust_env=False
        )

    def close(self) -> None:
        """Give its connections back."""
        self._client.close()

    def get(self, path: str) -> Mapping[str, Any]:
        """What it says of itself."""
        return self._json(self._request("GET", path))

    def act(self, action: str, params: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Tell it something. Raises FleetError as it answers."""
        reply = self._request("POST", "/action", {"action": action, **(params or {})})
        if reply.is_success:
            return self._json(reply)
        code = ErrorCode.INVALID_TRANSITION if reply.status_code == httpx.codes.CONFLICT else ErrorCode.EXECUTION_FAILED
        raise FleetError(f"the service of agent {self.agent_id!r} answered {reply.status_code} to {action}", code=code)

    def execute(self, body: Mapping[str, Any], timeout_s: float | None) -> httpx.Response:
        """Have it do a work; whatever it answers."""
        return self._request("POST", "/execute", body, httpx.Timeout(timeout_s, connect=CONNECT_S))

    def await_ready(self, longest_s: float) -> Mapping[str, Any]:
        """Wait until it answers `/health`, and return its `/info`."""
        again = Retrying(
            retry=retry_if_exception_type(FleetError),
            stop=stop_after_delay(longest_s),
            wait=wait_exponential(multiplier=WAIT_FIRST_S, max=WAIT_MAX_S),
            reraise=True,
        )
        again(self.get, "/health")
        return self.get("/info")

    def await_gone(self, longest_s: float) -> None:
        """Wait until nobody answers any more, or `longest_s` are over: it is about to replace its program."""
        again = Retrying(
            retry=retry_if_result(bool),
            stop=stop_after_delay(longest_s),
            wait=wait_fixed(WAIT_FIRST_S),
            retry_error_callback=lambda _: None,
        )
        again(self._answers)

    def _answers(self) -> bool:
        try:
            self.get("/health")
        except FleetError:
            return False
        return True

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout: httpx.Timeout | None = None
    ) -> httpx.Response:
        try:
            return self._client.request(method, path, json=body, timeout=timeout or self._client.timeout)
        except httpx.HTTPError as error:
            message = f"the service of agent {self.agent_id!r} at {self.url} does not answer: {type(error).__name__}: {error}"
            raise FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE) from error

    def _json(self, reply: httpx.Response) -> Mapping[str, Any]:
        try:
            found = reply.json()
        except ValueError:
            found = None
        if not reply.is_success or not isinstance(found, dict):
            message = f"the service of agent {self.agent_id!r} at {self.url} answered {reply.status_code} and no JSON object"
            raise FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE)
        return found


class ServiceAgent(Agent):
    """Stands for a service in the worker that hosts it; made by `agent_for`, with the type and the capabilities that the service has."""

    type = "service"
    capabilities: Mapping[str, str] = {"*": "1"}  # type: ignore[misc] # each instance has those of its service

    def __init_subclass__(cls, **options: Any) -> None:  # noqa: ANN401 - whatever a metaclass takes
        """A class of one service is nobody's type but its own."""

    def __init__(self, spec: AgentSpec, settings: Settings, service: Service) -> None:
        super().__init__(spec, settings)
        self.service = service

    def execute_work(self, work: WorkRequest) -> WorkResult:
        """Have the service do it."""
        present = info()
        assert present is not None, "a work is done inside its host"
        body = {"parameters": work.parameters, "work_type": work.work_type, "request_id": present.request_id}
        try:
            reply = self.service.execute(body, work.timeout_s)
        except FleetError as error:
            # Cut off in the middle, it may have been done: that counts as an execution.
            reached = not isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)
            raise WorkFailed(error.message, code=ErrorCode.EXECUTION_FAILED if reached else error.code, retryable=True) from error
        return _result(self.id, reply)

    def health(self) -> tuple[Health, str]:
        """Whether it answers."""
        try:
            self.service.get("/health")
        except FleetError as error:
            return Health.DEGRADED, error.message
        return Health.HEALTHY, ""

    def on_stop(self) -> None:
        """Give its connections back."""
        self.service.close()


def agent_for(spec: AgentSpec, settings: Settings, service: Service, about: Mapping[str, Any]) -> ServiceAgent:
    """The agent that stands for a service which said this about itself."""
    found = about.get("capabilities")
    capabilities = {str(name): str(version) for name, version in found.items()} if isinstance(found, dict) and found else {"execute": "1"}
    made: type[ServiceAgent] = type("ServiceOf", (ServiceAgent,), {"type": spec.type, "capabilities": capabilities})
    return made(spec, settings, service)


def _result(agent_id: str, reply: httpx.Response) -> WorkResult:
    """What the answer of a service means as the result of a work."""
    if len(reply.content) > ANSWER_BYTES_MAX:
        raise WorkFailed(f"the service of agent {agent_id!r} answered more than {ANSWER_BYTES_MAX} bytes", code=ErrorCode.PAYLOAD_TOO_LARGE)
    try:
        found = reply.json()
    except ValueError:
        found = None
    if not reply.is_success:
        code, retryable = CODES.get(reply.status_code, (ErrorCode.EXECUTION_FAILED, reply.status_code >= httpx.codes.INTERNAL_SERVER_ERROR))
        error = found.get("error") if isinstance(found, dict) else None
        said = error.get("message") if isinstance(error, dict) else None
        message = f"the service of agent {agent_id!r} answered {reply.status_code}" + (f": {said}" if said else "")
        raise WorkFailed(message, code=code, retryable=retryable)
    if isinstance(found, dict) and "exit_code" in found and found.get("status") in {"success", "error"}:
        try:
            return WorkResult.model_validate({name: value for name, value in found.items() if name in WorkResult.model_fields})
        except ValidationError:
            pass  # it looks like a result and is none: then it is what the work gave
    return WorkResult(agent_id=agent_id, output=found)
