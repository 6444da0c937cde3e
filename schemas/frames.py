"""The lines of a child, both directions; law: one line is one JSON object, and what does not fit is a bad frame with a reason, never a guess.

Tolerant in three places, because children are written by others: a summary says `start` or `start_time`, `end` or `end_time`; it may have
any other keys; metrics may have more than the four. A summary keeps its own text: what is stored is what the child wrote, byte by byte.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from schemas.messages import Timestamp

Json = Any

REASON_CHARS_MAX = 300
METRICS = ("cpu", "mem", "queue", "latency_ms")
MEMBERS = ("stop", "flush", "shutdown", "pause", "resume")
"""What a sequence is made of."""

SEQUENCE_MAX = 10

Member = Literal["stop", "flush", "shutdown", "pause", "resume"]


class BadFrame(ValueError):
    """A line that is no frame; the message says why, for the author of the child."""


_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")


def _written_out(value: object) -> object:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("must be a time with its zone, as in 2026-11-25T10:00:00.123Z")
    return value


Told = Annotated[Timestamp, Field(strict=False), BeforeValidator(_written_out)]
"""A time as a child writes it: RFC 3339, a text."""


# --- what a child says -------------------------------------------------------------------------------------------------------


class _Said(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    timestamp: Told | None = Field(None, description="when the child wrote it")
    agent_id: str | None = Field(None, description="the pipe says whose line it is; a child that names somebody else is not believed")


class HeartbeatFrame(_Said):
    """A sign of life, with how the child does."""

    type: Literal["heartbeat"]
    timestamp: Told
    metrics: dict[str, Json] = Field(
        description="cpu in percent of a core, mem in megabytes, queue in items, latency_ms of the last flush, and what else there is"
    )

    @field_validator("metrics")
    @classmethod
    def _measured(cls, metrics: dict[str, Json]) -> dict[str, Json]:
        for name in METRICS:
            if isinstance(metrics.get(name), bool) or not isinstance(metrics.get(name), int | float):
                raise ValueError(f"{name} must be a number")  # noqa: TRY004 - what pydantic turns into a message
        return metrics


class SummaryData(BaseModel):
    """What we read in a summary; its text may say more, and is kept as it is."""

    model_config = ConfigDict(frozen=True, extra="allow", strict=True)

    start: Told = Field(validation_alias=AliasChoices("start_time", "start"))
    end: Told = Field(validation_alias=AliasChoices("end_time", "end"))
    items: list[Json]
    count: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _forward(self) -> SummaryData:
        if self.end < self.start:
            raise ValueError("it ends before it starts")
        return self


class SummaryFrame(_Said):
    """What a child gathered since its last flush."""

    type: Literal["summary"]
    data: SummaryData
    text: str = Field("", exclude=True, description="`data` as the child wrote it")

    @property
    def start(self) -> datetime:
        """When the child began to gather this."""
        return self.data.start

    @property
    def end(self) -> datetime:
        """When it stopped."""
        return self.data.end

    @property
    def count(self) -> int:
        """How many items, as it says or as they are."""
        return len(self.data.items) if self.data.count is None else self.data.count


class AckFrame(_Said):
    """A command is done."""

    type: Literal["ack"]
    ack_command: Literal["stop", "flush", "shutdown", "pause", "resume", "sequence"]


class ErrorFrame(_Said):
    """Something went wrong in a child."""

    type: Literal["error"]
    message: str
    code: str = ""
    details: Json = None


Frame = HeartbeatFrame | SummaryFrame | AckFrame | ErrorFrame

_FRAME: TypeAdapter[Frame] = TypeAdapter(Annotated[Frame, Field(discriminator="type")])


def read(line: bytes) -> Frame:
    """The frame in a line without its line break; raises BadFrame with a reason."""
    try:
        value = orjson.loads(line)  # UTF-8, no NaN, no half characters, no endless depth
    except orjson.JSONDecodeError as error:
        raise BadFrame(f"not JSON: {error}"[:REASON_CHARS_MAX]) from None
    if not isinstance(value, dict):
        raise BadFrame("not a JSON object")
    if "text" in value:
        raise BadFrame("text: Extra inputs are not permitted")
    try:
        frame = _FRAME.validate_python(value)
    except ValidationError as error:
        raise BadFrame(_reason(error)) from None
    if isinstance(frame, SummaryFrame):
        return frame.model_copy(update={"text": _text_of(line.decode(), "data")})
    return frame


def _reason(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}"[:REASON_CHARS_MAX] if where else first["msg"][:REASON_CHARS_MAX]


_DECODER = json.JSONDecoder()
_SPACE = " \t\r\n"


def _text_of(text: str, wanted: str) -> str:
    """The text of one member of a JSON object that is known to be valid."""
    found: str | None = None
    at = _after_space(text, text.index("{") + 1)
    try:
        while text[at] != "}":
            key, at = _DECODER.raw_decode(text, at)
            start = _after_space(text, _after_space(text, at) + 1)  # over the colon
            _, at = _DECODER.raw_decode(text, start)
            if key == wanted and found is not None:
                raise BadFrame(f"{wanted} is there twice")
            found = text[start:at] if key == wanted else found
            at = _after_space(text, at)
            at = _after_space(text, at + 1) if text[at] == "," else at
    except (RecursionError, ValueError) as error:
        raise (
            error if isinstance(error, BadFrame) else BadFrame(f"{wanted} is nested too deeply, or has a number that is too long")
        ) from None
    assert found is not None, "the frame was valid, so it has the member"
    if "\r" in found:
        raise BadFrame(f"{wanted} has a carriage return, which would break lines where it is stored")
    return found


def _after_space(text: str, at: int) -> int:
    while text[at] in _SPACE:
        at += 1
    return at


# --- what a child is told ----------------------------------------------------------------------------------------------------


class FlushCommand(BaseModel):
    """Send the summary of what you have gathered, and begin anew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cmd: Literal["flush"] = "flush"


class SequenceCommand(BaseModel):
    """Do these in order, and acknowledge each; `shutdown` is acknowledged by leaving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cmd: Literal["sequence"] = "sequence"
    sequence: tuple[Member, ...] = Field(min_length=1, max_length=SEQUENCE_MAX)


def line(command: FlushCommand | SequenceCommand) -> bytes:
    """The line that tells a child, with its line break."""
    return orjson.dumps(command.model_dump()) + b"\n"
