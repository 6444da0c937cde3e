"""The lines of a child: what is a frame, what is not and why, and that a summary keeps its text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.frames import (
    REASON_CHARS_MAX,
    AckFrame,
    BadFrame,
    ErrorFrame,
    FlushCommand,
    HeartbeatFrame,
    SequenceCommand,
    SummaryFrame,
    line,
    read,
)

TIMES = '"start_time":"2025-11-10T14:23:00Z","end_time":"2025-11-10T14:24:00Z"'
NUMBERS = {"cpu": 1, "mem": 2.5, "queue": 0, "latency_ms": 3}

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=20,
)


def frame(text: str):
    return read(text.encode())


@pytest.mark.parametrize("names", [("start", "end"), ("start_time", "end_time"), ("start_time", "end"), ("start", "end_time")])
def test_both_spellings_of_a_window_are_read(names):
    first, last = names
    found = frame(f'{{"type":"summary","data":{{"{first}":"2025-11-10T14:23:00Z","{last}":"2025-11-10T15:24:00+01:00","items":[1,2]}}}}')
    assert (found.end - found.start).total_seconds() == 60
    assert found.count == 2


def test_a_count_of_its_own_is_believed():
    assert frame(f'{{"type":"summary","data":{{{TIMES},"items":[],"count":1000}}}}').count == 1000


@given(
    items=st.lists(values, max_size=5),
    more=st.dictionaries(st.text(st.characters(codec="utf-8")), values, max_size=5),
    indent=st.sampled_from([None, (", ", ": "), (",", ":"), (" ,\t", " :  ")]),
    ascii_only=st.booleans(),
    first=st.booleans(),
)
def test_a_summary_keeps_its_text_whatever_it_is(items, more, indent, ascii_only, first):
    known = {"start": "2025-11-10T14:23:00Z", "end": "2025-11-10T14:24:00Z", "items": items}
    text = json.dumps(
        {key: value for key, value in more.items() if key not in {"count", "start_time", "end_time"}} | known,
        separators=indent,
        ensure_ascii=ascii_only,
    )
    parts = ['"type":"summary"', f'"data" : {text}\t']
    found = frame("{ " + " ,".join(parts if first else reversed(parts)) + "}")
    assert isinstance(found, SummaryFrame)
    assert found.text == text


@given(st.binary(max_size=200) | st.text().map(str.encode) | values.map(lambda value: json.dumps(value).encode()))
def test_whatever_a_line_is_it_is_a_frame_or_a_bad_one(raw):
    try:
        found: str = read(raw).type
    except BadFrame as bad:
        found = str(bad)
    assert 0 < len(found) <= REASON_CHARS_MAX


@pytest.mark.parametrize(
    "text, kind",
    [
        (json.dumps({"type": "heartbeat", "timestamp": "2025-11-10T14:23:45.123Z", "metrics": NUMBERS}), HeartbeatFrame),
        (json.dumps({"type": "heartbeat", "timestamp": "2025-11-10T14:23:45Z", "metrics": NUMBERS | {"gpu": [1]}}), HeartbeatFrame),
        ('{"type":"ack","ack_command":"stop"}', AckFrame),
        ('{"type":"ack","ack_command":"flush","timestamp":"2025-11-10T14:23:45.123Z"}', AckFrame),
        ('{"type":"error","message":"m"}', ErrorFrame),
        ('{"type":"error","message":"m","code":"c","details":{"a":[1]},"agent_id":"a"}', ErrorFrame),
    ],
)
def test_frames_as_the_protocol_has_them(text, kind):
    assert isinstance(frame(text), kind)


@pytest.mark.parametrize(
    "text, because",
    [
        (
            json.dumps({"type": "heartbeat", "timestamp": "2025-11-10T14:23:45Z", "metrics": NUMBERS | {"cpu": True}}),
            "cpu must be a number",
        ),
        (json.dumps({"type": "heartbeat", "timestamp": "2025-11-10T14:23:45Z", "metrics": NUMBERS | {"mem": "2"}}), "mem must be a number"),
        (json.dumps({"type": "heartbeat", "metrics": NUMBERS}), "timestamp: Field required"),
        (json.dumps({"type": "heartbeat", "timestamp": "2025-11-10T14:23:45", "metrics": NUMBERS}), "must be a time with its zone"),
        (json.dumps({"type": "heartbeat", "timestamp": 1762784625, "metrics": NUMBERS}), "must be a time with its zone"),
        (json.dumps({"type": "heartbeat", "timestamp": "2025-13-10T14:23:45Z", "metrics": NUMBERS}), "timestamp"),
        ('{"type":"error"}', "message: Field required"),
        ('{"type":"error","message":1}', "valid string"),
        ('{"type":"error","message":"m","text":"t"}', "text: Extra inputs"),
        ('{"type":"ack"}', "ack_command: Field required"),
        (f'{{"type":"summary","data":{{{TIMES}}}}}', "data.items: Field required"),
        (f'{{"type":"summary","data":{{{TIMES},"items":{{}}}}}}', "data.items"),
        (f'{{"type":"summary","data":{{{TIMES},"items":[],"count":-1}}}}', "data.count"),
        (f'{{"type":"summary","data":{{{TIMES},"items":[],"count":true}}}}', "data.count"),
        (f'{{"type":"summary","data":{{{TIMES},"items":[]}},"data":{{{TIMES},"items":[]}}}}', "data is there twice"),
        (f'{{"type":"summary","data":{{{TIMES},\r"items":[]}}}}', "carriage return"),
        ('{"type":"summary","data":[]}', "data"),
        ('{"type":"summary"}', "data"),
        ("", "not JSON"),
        ('{"type":null}', "type"),
        ('"text"', "not a JSON object"),
    ],
)
def test_what_is_no_frame_says_why(text, because):
    with pytest.raises(BadFrame, match=because):
        frame(text)


def test_what_a_child_is_told():
    assert line(FlushCommand()) == b'{"cmd":"flush"}\n'
    assert line(SequenceCommand(sequence=("stop", "flush", "shutdown"))) == b'{"cmd":"sequence","sequence":["stop","flush","shutdown"]}\n'
    for wrong in ((), ("explode",), ("stop",) * 11):
        with pytest.raises(ValueError, match="sequence"):
            SequenceCommand.model_validate({"sequence": wrong})
