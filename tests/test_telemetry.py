"""Log lines are JSON whatever is logged, and belong to a trace."""

from __future__ import annotations

import io
import json
import logging

import pytest

from orchestrator.telemetry import JsonLines, continued, current_trace, tracing


@pytest.fixture
def logged():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(agent_id="a-1"))
    logger = logging.getLogger("test-telemetry")
    logger.propagate = False
    logger.addHandler(handler)
    yield logger, lambda: [json.loads(line) for line in stream.getvalue().splitlines()]
    logger.removeHandler(handler)


@pytest.mark.req("S1-27")
def test_a_line_has_time_level_agent_trace_and_message(logged):
    logger, lines = logged
    with tracing(continued("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")):
        logger.warning("hello %s", "world", extra={"route": "/x", "ts": "not mine to set"})
    (line,) = lines()
    assert (line["level"], line["agent_id"], line["message"], line["route"]) == ("WARNING", "a-1", "hello world", "/x")
    assert line["trace_id"] == "0af7651916cd43dd8448eb211c80319c"
    assert line["ts"].endswith("Z")


def test_whatever_is_logged_is_one_json_object_on_one_line(logged):
    logger, lines = logged
    logger.warning("two\nlines \ud800 \0", extra={"thing": object(), 1: 2} | {"half": "\ud800"})
    try:
        int("broken\nhere")
    except ValueError:
        logger.exception("it failed")
    first, second = lines()
    assert first["message"].startswith("two\nlines")
    assert "ValueError: invalid literal" in second["exception"]
    assert second["trace_id"] == ""


@pytest.mark.req("S1-30")
@pytest.mark.parametrize(
    "given",
    [
        "",
        None,
        "nonsense",
        "00-" + "0" * 32 + "-b7ad6b7169203331-01",
        "00-" + "a" * 32 + "-" + "0" * 16 + "-01",
        "ff-" + "a" * 32 + "-" + "b" * 16 + "-01",
    ],
)
def test_a_trace_that_makes_no_sense_is_replaced_by_a_new_one(given):
    trace = continued(given)
    assert len(trace.trace_id) == 32
    assert trace.trace_id != "a" * 32
    assert trace.traceparent == f"00-{trace.trace_id}-{trace.span_id}-01"


@pytest.mark.req("S1-30")
def test_a_trace_is_continued_with_a_span_of_our_own():
    trace = continued("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00")
    assert trace.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert trace.span_id != "b7ad6b7169203331"
    assert trace.traceparent.endswith("-00")
    assert current_trace() is None
