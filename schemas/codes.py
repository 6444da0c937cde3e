"""Why something was refused or failed, one word a reason; law: imports nothing, so that errors and help stay light."""

from __future__ import annotations

from enum import StrEnum


class ErrorCode(StrEnum):
    """Why something was refused or failed; `HTTP_STATUS` says how HTTP tells it."""

    INVALID_REQUEST = "invalid_request"
    UNKNOWN_COMMAND = "unknown_command"
    INVALID_ENVELOPE = "invalid_envelope"
    UNKNOWN_WORK_TYPE = "unknown_work_type"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    AGENT_NOT_FOUND = "agent_not_found"
    NOT_FOUND = "not_found"
    AGENT_EXISTS = "agent_exists"
    AGENT_PAUSED = "agent_paused"
    AGENT_STOPPING = "agent_stopping"
    INVALID_TRANSITION = "invalid_transition"
    WORKFLOW_EXISTS = "workflow_exists"
    VERSION_CONFLICT = "version_conflict"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    POOL_UNSUPPORTED = "pool_unsupported"
    PAYLOAD_TOO_LARGE = "payload_too_large"
    EXECUTION_FAILED = "execution_failed"
    INTERNAL_ERROR = "internal_error"
    AGENT_UNAVAILABLE = "agent_unavailable"
    RC_TIMEOUT = "rc_timeout"
    START_FAILED = "start_failed"
    BROKER_UNAVAILABLE = "broker_unavailable"
    DATABASE_UNAVAILABLE = "database_unavailable"
    NO_CAPACITY = "no_capacity"


HTTP_STATUS: dict[ErrorCode, int] = {
    ErrorCode.INVALID_REQUEST: 400,
    ErrorCode.UNKNOWN_COMMAND: 400,
    ErrorCode.INVALID_ENVELOPE: 400,
    ErrorCode.UNKNOWN_WORK_TYPE: 400,
    ErrorCode.UNAUTHORIZED: 401,
    ErrorCode.FORBIDDEN: 403,
    ErrorCode.AGENT_NOT_FOUND: 404,
    ErrorCode.NOT_FOUND: 404,
    ErrorCode.AGENT_EXISTS: 409,
    ErrorCode.AGENT_PAUSED: 409,
    ErrorCode.AGENT_STOPPING: 409,
    ErrorCode.INVALID_TRANSITION: 409,
    ErrorCode.WORKFLOW_EXISTS: 409,
    ErrorCode.VERSION_CONFLICT: 409,
    ErrorCode.IDEMPOTENCY_CONFLICT: 409,
    ErrorCode.POOL_UNSUPPORTED: 409,
    ErrorCode.PAYLOAD_TOO_LARGE: 413,
    ErrorCode.EXECUTION_FAILED: 500,
    ErrorCode.INTERNAL_ERROR: 500,
    ErrorCode.AGENT_UNAVAILABLE: 503,
    ErrorCode.RC_TIMEOUT: 503,
    ErrorCode.START_FAILED: 503,
    ErrorCode.BROKER_UNAVAILABLE: 503,
    ErrorCode.DATABASE_UNAVAILABLE: 503,
    ErrorCode.NO_CAPACITY: 503,
}
