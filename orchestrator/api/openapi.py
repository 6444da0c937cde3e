"""The description of the API; law: it says what happens, every status and every body, and tests hold the server to it."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from orchestrator.api.errors import Problem
from orchestrator.api.permissions import RULES, Rule
from schemas.access import Role

DESCRIPTION = """
Show a key as `Authorization: Bearer <key>` or, as the manager, as `X-Manager-Token`. Errors have one shape, `Problem`. Each answer has an
`X-Request-Id` and a `traceparent`; send yours and it is continued. A 503 says by `Retry-After` when to come back.
"""
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "an API token, or a web token made from one"},
    "manager": {"type": "apiKey", "in": "header", "name": "X-Manager-Token", "description": "the manager token"},
}
PROBLEMS = {
    400: "The request is not valid",
    401: "A key is missing, or not one that counts",
    403: "The key is good, and does not open this",
    404: "There is no such thing",
    409: "Its present state does not allow that",
    413: "The body is larger than the limit",
    415: "The body is no JSON",
    500: "The server made a mistake",
    503: "Something that is needed does not answer; come back",
}
LINKS = {
    ("/api/v1/workflows", "201"): ("workflow_id", "workflow_id"),
    ("/api/v1/agents", "201"): ("agent_id", "agent_id"),
    ("/api/v1/work", "202"): ("request_id", "request_id"),
}
_FRAMEWORKS_OWN = ("HTTPValidationError", "ValidationError")


def install(app: FastAPI) -> None:
    """Have the application describe itself this way."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = described(app)
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign] # FastAPI's own way to do it


def described(app: FastAPI) -> dict[str, Any]:
    """The document: FastAPI's, with our errors and keys."""
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, description=DESCRIPTION, routes=app.routes)
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for name in _FRAMEWORKS_OWN:
        schemas.pop(name, None)
    problem = TypeAdapter(Problem).json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas.update(problem.pop("$defs", {}))
    schemas["Problem"] = problem
    components["securitySchemes"] = SCHEMES
    _link(document["paths"])
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _complete(operation, path, RULES[method.upper(), path])
    return document


def _link(paths: dict[str, Any]) -> None:
    """Say which answers name what other addresses ask for."""
    for (source, status), (parameter, pointer) in LINKS.items():
        answer = paths[source]["post"]["responses"][status]
        answer["links"] = {
            operation["operationId"]: {
                "operationId": operation["operationId"],
                "parameters": {f"path.{parameter}": f"$response.body#/{pointer}"},
            }
            for path, operations in paths.items()
            for operation in operations.values()
            if f"{{{parameter}}}" in path
        }


def _complete(operation: dict[str, Any], path: str, rule: Rule) -> None:
    for parameter in operation.get("parameters", ()):
        _leave_out_null(parameter["schema"])
    responses = operation["responses"]
    responses.pop("422", None)
    for status in _statuses(operation, path, rule):
        answer: dict[str, Any] = {
            "description": PROBLEMS[status],
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status == 503:
            answer["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds", "required": True}}
        responses.setdefault(str(status), answer)
    if rule.role is not None:
        operation["security"] = [{"bearer": []}, {"manager": []}]
        operation["description"] = f"{operation.get('description', '')}\n\nNeeds the role {rule.role}.".strip()


def _leave_out_null(schema: dict[str, Any]) -> None:
    """A parameter that is not given is left out; there is no way to write null."""
    some = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if len(some) == 1:
        del schema["anyOf"]
        schema.update(some[0])


def _statuses(operation: dict[str, Any], path: str, rule: Rule) -> list[int]:
    found = [400, 500, 503]
    if rule.role is not None:
        found += [401, 403]
    if "{" in path or rule.role is Role.AGENT or path == "/api/v1/work":
        found.append(404)
    if rule.action:
        found.append(409)
    if "requestBody" in operation:
        found += [413, 415]
    return sorted(found)
