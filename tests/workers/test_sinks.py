"""The event file, and the files that turn over: what stands in them is whole, bounded, and what the child wrote."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from schemas.frames import ErrorFrame, HeartbeatFrame, SummaryFrame, read
from tests.workers.child_kit import HEARTBEAT, OBEDIENT, SUMMARY, WAIT_MAX_S, Told, child, hosting
from workers.rotation import RollingFile
from workers.sinks import Console, EventFile, Sinks

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "logs" / "events.jsonl"


@pytest.fixture
def events(path):
    file = EventFile(path)
    yield file
    file.close()


def lines(path) -> list[dict[str, Any]]:
    assert path.read_bytes().endswith(b"\n")
    return [json.loads(line) for line in path.read_text().splitlines()]


def heartbeat(text: str = HEARTBEAT) -> HeartbeatFrame:
    frame = read(text.encode())
    assert isinstance(frame, HeartbeatFrame)
    return frame


def summary(data: str) -> SummaryFrame:
    frame = read(f'{{"type":"summary","data":{data}}}'.encode())
    assert isinstance(frame, SummaryFrame)
    return frame


@pytest.mark.req("S0-30")
@pytest.mark.req("S0-32")
def test_a_heartbeat_is_one_line_in_the_form_of_the_seed(path, events):
    events.heartbeat("my-agent", heartbeat())
    (line,) = lines(path)
    assert STAMP.fullmatch(line.pop("timestamp"))
    metrics = {"cpu": 1.5, "mem": 20, "queue": 0, "latency_ms": 2}
    assert line == {"label": "my-agent", "event": "heartbeat", "data": {"heartbeat": True, "metrics": metrics}}
    assert (
        path.read_text().index('"timestamp"')
        < path.read_text().index('"label"')
        < path.read_text().index('"event"')
        < path.read_text().index('"data"')
    )


@pytest.mark.req("S0-31")
@pytest.mark.req("S0-03")
def test_a_summary_stands_there_byte_by_byte(path, events):
    data = '{ "zzz" : 1.50,"items":[{"b":1e3,"a":"\\u00fc"}],"start_time":"2025-11-10T14:23:00Z","end_time":"2025-11-10T14:24:00Z","duration_s":60,"count":1}'
    frame = summary(data)
    events.summary("my-agent", frame.text, frame)
    assert path.read_text().endswith(f',"label":"my-agent","event":"summary","data":{data}}}\n')
    assert lines(path)[0]["data"] == json.loads(data)


def test_an_error_is_an_event_too(path, events):
    frame = read(b'{"type":"error","message":"no probe","code":"E1"}')
    assert isinstance(frame, ErrorFrame)
    events.error("my-agent", frame)
    assert lines(path)[0]["data"] == {"message": "no probe", "code": "E1", "details": None}


@pytest.mark.req("S0-14")
@pytest.mark.req("S0-29")
def test_events_are_in_the_file_before_anybody_else_hears_of_them_and_its_last_line_is_whole(path, events, tmp_path):
    class Reads(Told):
        def _note(self, agent_id, what, rest=None):
            super()._note(agent_id, what, (rest, len(lines(path)) if path.exists() else 0))

    told = Reads()
    with hosting(tmp_path, Sinks(events, told)) as host:
        host.start(child(OBEDIENT)).result(WAIT_MAX_S)
        host.flush("c-1").result(WAIT_MAX_S)
        host.close(drain_s=WAIT_MAX_S)
        events.close()
    assert [(what, rest[1]) for _, what, rest in told.reports if what in {"heartbeat", "summary"}] == [
        ("heartbeat", 1),
        ("summary", 2),
        ("summary", 3),
    ]
    assert [line["event"] for line in lines(path)] == ["heartbeat", "summary", "summary"]
    assert lines(path)[-1]["data"] == json.loads(SUMMARY)["data"]


@pytest.mark.req("S0-05")
def test_heartbeats_are_printed_for_those_who_want_to_see_them(caplog):
    with caplog.at_level("INFO"):
        Console().heartbeat("my-agent", heartbeat())
    assert caplog.messages == ["heartbeat of my-agent: cpu=1.5 mem=20 queue=0 latency_ms=2"]


def test_a_sink_that_fails_keeps_nothing_from_the_next(caplog):
    class Broken(Told):
        def heartbeat(self, agent_id, frame):
            raise RuntimeError("no database")

    told = Told()
    Sinks(Broken(), told).heartbeat("my-agent", heartbeat())
    assert len(told.of("my-agent", "heartbeat")) == 1
    assert "Broken could not take a report about an agent" in caplog.text


def test_a_file_turns_over_when_it_is_full_and_only_so_many_are_kept(path):
    file = RollingFile(path, file_bytes_max=100, files_max=3)
    for n in range(100):
        file.write(b"line %04d\n" % n)
    file.close()
    kept = [path.with_name(path.name + end) for end in (".2", ".1", "")]
    assert sorted(path.parent.iterdir()) == sorted(kept)
    assert [line for one in kept for line in one.read_text().split("\n") if line] == [f"line {n:04d}" for n in range(70, 100)]
    assert max(one.stat().st_size for one in kept) <= 100


def test_a_file_that_somebody_else_moved_or_removed_is_opened_anew(path):
    file = RollingFile(path, file_bytes_max=1000, files_max=2)
    file.write(b"one\n")
    path.rename(path.with_name("moved"))
    file.write(b"two\n")
    path.unlink()
    file.write(b"three\n")
    file.close()
    assert (path.with_name("moved").read_bytes(), path.read_bytes()) == (b"one\n", b"three\n")


def test_a_line_longer_than_a_file_is_kept_whole(path):
    file = RollingFile(path, file_bytes_max=10, files_max=2)
    file.write(b"x" * 50 + b"\n")
    file.write(b"short\n")
    file.close()
    assert path.read_bytes() == b"short\n"
    assert path.with_name("events.jsonl.1").read_bytes() == b"x" * 50 + b"\n"


def test_who_died_in_the_middle_of_a_line_spoils_no_other(path):
    path.parent.mkdir()
    path.write_bytes(b'{"whole":1}\n{"hal')
    file = RollingFile(path, file_bytes_max=1000, files_max=2)
    file.write(b'{"next":2}\n')
    file.close()
    assert path.read_bytes() == b'{"whole":1}\n{"hal\n{"next":2}\n'


def test_a_disk_that_refuses_stops_nobody_and_is_told_once(tmp_path, caplog):
    (tmp_path / "logs").write_text("not a folder")
    file = RollingFile(tmp_path / "logs" / "events.jsonl", file_bytes_max=1000, files_max=2)
    for _ in range(3):
        file.write(b"x\n")
    assert file.lost == 3
    assert len(caplog.records) == 1
    (tmp_path / "logs").unlink()
    file.write(b"back\n")
    file.close()
    assert (tmp_path / "logs" / "events.jsonl").read_text() == "back\n"


def test_a_full_disk_leaves_whole_lines(caplog):
    file = RollingFile(Path("/dev/full"), file_bytes_max=1000, files_max=2)
    file.write(b"x\n")
    assert file.lost == 1
    assert "No space left" in caplog.text
