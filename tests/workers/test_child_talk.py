"""What children and their host say to each other: in order, bounded, and whatever a child does the others are heard."""

from __future__ import annotations

import json
import os
import signal
import threading
from concurrent.futures import wait

import psutil
import pytest

from orchestrator.errors import FleetError
from schemas.messages import ErrorCode
from tests.workers.child_kit import HEARTBEAT, OBEDIENT, SUMMARY, WAIT_MAX_S, Told, child, hosting, service
from workers.child import Exit, Flushed, Sequenced, conversation, hosted, tail
from workers.child.reports import OUTSTANDING_BYTES_MAX, OUTSTANDING_REPORTS_MAX

SAY = "import sys, os, time, json\ndef say(line): sys.stdout.write(line + '\\n'); sys.stdout.flush()\n"
FOREVER = "\ntime.sleep(1000)"


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def host(tmp_path, told):
    with hosting(tmp_path, told, flush_timeout_s=0.3) as processes:
        yield processes


@pytest.mark.req("S0-15")
@pytest.mark.req("S0-17")
def test_the_bytes_of_the_commands_are_those_of_the_protocol(host, told):
    host.start(child(SAY + "say(json.dumps({'type': 'error', 'message': sys.stdin.readline() + sys.stdin.readline()}))" + FOREVER)).result(
        WAIT_MAX_S
    )
    host.flush("c-1")
    host.sequence("c-1", ("stop", "flush", "shutdown"), timeout_s=WAIT_MAX_S)
    assert told.wait("c-1", "error") == ['{"cmd":"flush"}\n{"cmd":"sequence","sequence":["stop","flush","shutdown"]}\n']


def test_a_flush_is_answered_by_a_summary_and_measured(host, told):
    host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    flushed = host.flush("c-1").result(WAIT_MAX_S)
    assert flushed == Flushed("c-1", flushed.latency_s, attempts=1)
    assert 0 < flushed.latency_s < WAIT_MAX_S
    assert host.running()[0].flush_latency_s == flushed.latency_s
    assert told.wait("c-1", "summary") == [json.dumps(json.loads(SUMMARY)["data"], separators=(",", ":"))]


@pytest.mark.req("S0-10")
def test_while_a_flush_is_under_way_another_is_the_same(host, told):
    code = "lines = iter(sys.stdin.readline, '')\nnext(lines); os.read(os.open(sys.argv[1], os.O_RDONLY), 1)\n"
    gate = host.log_folder.parent / "gate"
    os.mkfifo(gate)
    spec = child(SAY + code + f"say('{SUMMARY}')\nfor line in lines: say(json.dumps({{'type': 'error', 'message': line}}))")
    host.start(spec.model_copy(update={"args": (*spec.args, str(gate))})).result(WAIT_MAX_S)
    flushes = [host.flush("c-1") for _ in range(5)]
    gate.write_text("x")
    assert {flush.result(WAIT_MAX_S) for flush in flushes} == {flushes[0].result()}
    host.sequence("c-1", ("pause",), timeout_s=WAIT_MAX_S)
    assert told.wait("c-1", "error") == ['{"cmd":"sequence","sequence":["pause"]}\n'], "it was told to flush once"


@pytest.mark.req("S0-37")
def test_a_flush_that_nobody_answers_is_tried_once_more_and_then_reported(host, told):
    host.start(child(SAY + f"say('{HEARTBEAT}')" + FOREVER)).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match=r"gave no summary within 0.3 s, 2 times asked") as missed:
        host.flush("c-1").result(WAIT_MAX_S)
    assert missed.value.code is ErrorCode.AGENT_UNAVAILABLE
    assert told.wait("c-1", "flush_missed", 2) == [1, 2]
    assert host.running()[0].flushes_missed == 2


def test_a_late_summary_makes_good(host, told):
    host.start(child(SAY + f"sys.stdin.readline(); sys.stdin.readline(); say('{SUMMARY}')" + FOREVER)).result(WAIT_MAX_S)
    assert host.flush("c-1").result(WAIT_MAX_S).attempts == 2
    assert told.wait("c-1", "flush_missed") == [1]
    assert host.running()[0].flushes_missed == 0


@pytest.mark.req("S0-18")
@pytest.mark.req("S0-20")
def test_a_sequence_is_acknowledged_in_order_and_ends_with_leaving(host, told):
    host.start(child(OBEDIENT)).result(WAIT_MAX_S)
    assert host.sequence("c-1", ("pause", "resume"), timeout_s=WAIT_MAX_S).result(WAIT_MAX_S) == Sequenced("c-1", ("pause", "resume"))
    done = host.sequence("c-1", ("stop", "flush", "shutdown"), timeout_s=WAIT_MAX_S).result(WAIT_MAX_S)
    assert done == Sequenced("c-1", ("stop", "flush"), left=True)
    ended = told.wait("c-1", "exited")[0]
    assert (ended.code, ended.asked) == (0, True)
    kinds = [kind if kind != "ack" else f"ack {rest}" for _, kind, rest in told.reports if kind != "heartbeat"]
    assert kinds == ["started", "ack pause", "ack resume", "ack stop", "summary", "ack flush", "exited"]


@pytest.mark.parametrize(
    "answer, members, because",
    [
        ("ack('flush')", ("stop", "flush"), "did not acknowledge stop within 0.5 s, but out of turn flush"),
        ("ack('stop'); ack('flush')", ("stop", "flush"), "did not acknowledge flush within 0.5 s, but out of turn flush"),
        ("ack('stop')", ("stop", "flush"), "did not acknowledge flush within 0.5 s"),
        ("", ("pause",), "did not acknowledge pause within 0.5 s"),
        ("ack('stop'); os._exit(0)", ("stop", "flush"), "ended before it acknowledged flush"),
    ],
)
def test_a_sequence_that_goes_wrong_says_where(host, answer, members, because):
    code = "def ack(what): say(json.dumps({'type': 'ack', 'ack_command': what}))\nfor line in sys.stdin:\n    "
    host.start(child(SAY + code + (answer or "pass"))).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match=because):
        host.sequence("c-1", members, timeout_s=0.5).result(WAIT_MAX_S)


@pytest.mark.parametrize("members", [(), ("explode",), ("pause",) * 11])
def test_what_is_no_sequence_is_not_sent(host, members):
    with pytest.raises(FleetError, match="a sequence has 1 to 10 of stop, flush") as refused:
        host.sequence("c-1", members, timeout_s=1).result(WAIT_MAX_S)
    assert refused.value.code is ErrorCode.INVALID_REQUEST


def test_one_sequence_at_a_time(host):
    host.start(child(SAY + FOREVER)).result(WAIT_MAX_S)
    first = host.sequence("c-1", ("pause",), timeout_s=WAIT_MAX_S)
    for second in (host.sequence("c-1", ("resume",), timeout_s=1), host.flush("c-1")):
        with pytest.raises(FleetError, match="in the middle of a sequence"):
            second.result(WAIT_MAX_S)
    host.kill("c-1")
    with pytest.raises(FleetError, match=r"is told to leave|ended before"):
        first.result(WAIT_MAX_S)


def test_only_children_have_pipes(host):
    host.start(service("sleep", "1000")).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match="is http and not a child"):
        host.flush("s-1").result(WAIT_MAX_S)


@pytest.mark.req("S0-16")
@pytest.mark.req("S0-03")
def test_summaries_come_as_they_were_written(host, told):
    texts = [
        '{"start":"2025-11-10T14:23:00Z","end":"2025-11-10T14:24:00Z","items":[]}',
        '{ "zzz":1.50, "items" : [ {"b":1,"a":[]} ] ,"start_time":"2025-11-10T14:23:00.1+02:00","end_time":"2025-11-10T14:24:00Z","ü":"\\u00fc"}',
    ]
    frames = json.dumps(['{"type":"summary","data":' + text + "}" for text in texts])
    spec = child(SAY + "for line in json.loads(sys.argv[1]): say(line)" + FOREVER)
    host.start(spec.model_copy(update={"args": (*spec.args, frames)})).result(WAIT_MAX_S)
    assert told.wait("c-1", "summary", 2) == texts


HOSTILE = [
    ("say('garbage')", "not JSON"),
    ('say(\'{"type":"zzz"}\')', "does not match any of the expected tags"),
    ("say('[1]')", "not a JSON object"),
    ("say('42')", "not a JSON object"),
    ('say(\'{"type":"heartbeat","timestamp":"2025-11-10T14:23:45Z","metrics":{"cpu":NaN,"mem":1,"queue":1,"latency_ms":1}}\')', "not JSON"),
    (
        'say(\'{"type":"heartbeat","timestamp":"2025-11-10T14:23:45Z","metrics":{"cpu":1,"mem":1,"queue":1}}\')',
        "latency_ms must be a number",
    ),
    (
        'say(\'{"type":"heartbeat","timestamp":"now","metrics":{"cpu":1,"mem":1,"queue":1,"latency_ms":1}}\')',
        "must be a time with its zone",
    ),
    ("say('[' * 100_000)", "not JSON"),
    (
        'say(\'{"type":"summary","data":{"start":"2025-11-10T14:23:00Z","end":"2025-11-10T14:24:00Z","items":[\' + "[" * 1000 + "]" * 1000 + \']}}\')',
        "nested too deeply",
    ),
    ('say(\'{"type":"error","message":"x","a":\' * 5000)', "not JSON"),
    ('sys.stdout.buffer.write(b\'{"type":"error","message":"\\xff"}\\n\')', "not JSON"),
    ('say(\'{"type":"error","message":"\\\\ud800"}\')', "not JSON"),
    ("say('x' * 10_000_000)", "the line has 10000000 bytes"),
    ("os.write(1, b'\\0' * 1000 + b'\\n')", "not JSON"),
    ('say(\'{"type":"ack","ack_command":"stop","agent_id":"somebody-else"}\')', "it says that it is 'somebody-else'"),
    ('say(\'{"type":"ack","ack_command":"explode"}\')', "ack_command"),
    ('say(\'{"type":"error","message":"m","extra":1}\')', "Extra inputs are not permitted"),
    (
        'say(\'{"type":"summary","data":{"start":"2025-11-10T14:25:00Z","end":"2025-11-10T14:24:00Z","items":[]}}\')',
        "it ends before it starts",
    ),
    ('say(\'{"type":"summary","data":{"items":[]}}\')', "data.start_time: Field required"),
]


@pytest.mark.req("S0-28")
@pytest.mark.parametrize("hostile, because", HOSTILE, ids=range(len(HOSTILE)))
def test_a_line_that_is_no_frame_is_a_dead_letter_and_the_next_one_counts(host, told, hostile, because):
    host.start(child(SAY + hostile + f"\nsay('{HEARTBEAT}')" + FOREVER)).result(WAIT_MAX_S)
    told.wait("c-1", "heartbeat")
    ((line, reason),) = told.of("c-1", "dead_letter")
    assert because in reason
    assert len(line) <= conversation.DEAD_LETTER_CHARS_MAX
    assert host.running()[0].dead_letters == 1


@pytest.mark.req("S0-21")
def test_an_error_of_a_child_is_in_the_log_of_its_host_and_in_its_own(host, told, caplog):
    host.start(child(SAY + """say('{"type":"error","message":"the probe is broken"}')""" + FOREVER)).result(WAIT_MAX_S)
    assert told.wait("c-1", "error") == ["the probe is broken"]
    assert [record.levelname for record in caplog.records if "agent c-1: the probe is broken" in record.getMessage()] == ["ERROR"]
    (kept,) = tail(host.log_folder, "c-1", 1)
    assert (kept["message"], kept["level"]) == ("the probe is broken", "ERROR")


FLOODS = {
    "garbage": "while True: os.write(1, b'garbage\\n' * 8000)",
    "one endless line": "while True: os.write(1, b'x' * 65536)",
    "heartbeats": f"while True: os.write(1, b'{HEARTBEAT}\\n' * 100)",
    "its log": "while True: os.write(2, b'chatter\\n' * 8000)",
    "empty lines": "while True: os.write(1, b'\\n' * 65536)",
}


def rss_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.req("S0-27")
@pytest.mark.parametrize("flood", FLOODS)
def test_a_child_that_floods_is_slowed_and_the_others_are_heard(host, told, monkeypatch, flood):
    monkeypatch.setattr(hosted, "LINES_BURST", 20_000)
    monkeypatch.setattr(hosted, "BYTES_BURST", 2_000_000)
    before = rss_mb()
    host.start(child(SAY + FLOODS[flood], "flood")).result(WAIT_MAX_S)
    host.start(child(OBEDIENT, "good")).result(WAIT_MAX_S)
    for _ in range(20):
        assert host.flush("good").result(WAIT_MAX_S).attempts <= 2
    assert len(told.of("flood", "dead_letter")) <= conversation.DEAD_LETTERS_BURST + 60
    assert rss_mb() - before < 100
    assert host.kill("flood").result(WAIT_MAX_S).code == -signal.SIGKILL


def test_while_the_sink_waits_little_is_held_and_nothing_is_lost(host, told):
    ack = '{"type":"ack","ack_command":"stop"}'
    host.start(child(SAY + f"for n in range(5000): say('{ack}')\nsay('{SUMMARY}')" + FOREVER)).result(WAIT_MAX_S)
    told.wait("c-1", "started")
    told.gate.clear()
    host.start(child(OBEDIENT, "other")).result(WAIT_MAX_S)
    assert host.flush("other").result(WAIT_MAX_S).latency_s < WAIT_MAX_S, "commands go on"
    held = host._reports._queue.qsize()
    assert held <= 2 * OUTSTANDING_REPORTS_MAX + 2 * OUTSTANDING_BYTES_MAX // len(ack)
    told.gate.set()
    told.wait("c-1", "summary")
    assert len(told.of("c-1", "ack")) == 5000


@pytest.mark.parametrize("kind, line", [("heartbeat", HEARTBEAT), ("error", '{"type":"error","message":"m"}')])
def test_of_a_thousand_heartbeats_or_errors_at_once_the_sink_hears_a_hundred_and_of_summaries_all(host, told, kind, line):
    host.start(child(SAY + f"for n in range(1000): say('{line}')\nfor n in range(1000): say('{SUMMARY}')" + FOREVER)).result(WAIT_MAX_S)
    told.wait("c-1", "summary", 1000)
    assert 100 <= len(told.of("c-1", kind)) < 1000
    if kind == "error":
        assert len(tail(host.log_folder, "c-1", 10_000)) == 1000, "its log has them all"


def test_a_child_that_is_told_to_leave_and_stays_is_ended(host, told):
    host.start(child(SAY + FOREVER)).result(WAIT_MAX_S)
    with pytest.raises(FleetError, match="did not acknowledge shutdown"):
        host.sequence("c-1", ("shutdown",), timeout_s=0.2).result(WAIT_MAX_S)
    ended = told.wait("c-1", "exited")[0]
    assert (ended.code, ended.asked, ended.signalled) == (-signal.SIGTERM, True, True)


def test_a_crash_while_it_drains_can_be_told_from_a_stop(host):
    host.start(child(SAY + "sys.stdin.readline(); sys.exit(3)")).result(WAIT_MAX_S)
    ended = host.stop("c-1", drain_s=WAIT_MAX_S).result(WAIT_MAX_S)
    assert (ended.code, ended.asked, ended.signalled, ended.forced) == (3, True, False, False)


def test_a_python_child_that_does_not_flush_is_heard(host, told):
    host.start(child(f"import time; print('{HEARTBEAT}')" + FOREVER)).result(WAIT_MAX_S)
    told.wait("c-1", "heartbeat")


def test_a_sink_that_raises_hears_the_next_report(tmp_path):
    class Fragile(Told):
        def heartbeat(self, agent_id, frame):
            raise RuntimeError("no database")

    told = Fragile()
    with hosting(tmp_path, told) as host:
        host.start(child(OBEDIENT)).result(WAIT_MAX_S)
        host.flush("c-1").result(WAIT_MAX_S)
        told.wait("c-1", "summary")


def test_a_child_that_never_reads_is_told_so_much_and_no_more(host):
    host.start(child("import time" + FOREVER)).result(WAIT_MAX_S)
    deaf = 0
    for _ in range(20_000):
        try:
            host.sequence("c-1", ("pause",), timeout_s=0.0001).result(WAIT_MAX_S)
        except FleetError as error:
            deaf += "does not read its commands" in error.message
        if deaf:
            break
    assert deaf, "the pipe and our buffer are full"
    assert host.kill("c-1").result(WAIT_MAX_S).forced


def test_a_child_that_closes_its_stdin_is_deaf(host):
    host.start(child("import os, time\nos.close(0)\nprint(1, flush=True)" + FOREVER)).result(WAIT_MAX_S)
    with pytest.raises(FleetError):
        host.flush("c-1").result(WAIT_MAX_S)
    assert host.stop("c-1", drain_s=0.2, grace_s=1).result(WAIT_MAX_S).asked


def test_a_child_that_closes_its_stdout_is_ended_as_failed(host, told, monkeypatch):
    monkeypatch.setattr(hosted, "MUTE_MAX_S", 0.2)
    host.start(child("import os, time\nos.close(1)" + FOREVER)).result(WAIT_MAX_S)
    ended = told.wait("c-1", "exited")[0]
    assert (ended.code, ended.asked, ended.reason) == (-signal.SIGTERM, False, "it closed its stdout, so it could not be heard any more")


def test_last_words_without_a_line_break_are_heard(host, told):
    host.start(child(f"import os\nos.write(1, b'{HEARTBEAT}')")).result(WAIT_MAX_S)
    told.wait("c-1", "exited")
    assert len(told.of("c-1", "heartbeat")) == 1


def test_reports_of_one_process_come_in_order_with_its_exit_last(host, told):
    lines = "\n".join(f"say('{HEARTBEAT}')" for _ in range(50))
    for n in range(1, 6):
        host.start(child(SAY + lines)).result(WAIT_MAX_S)
        told.wait("c-1", "exited", n)
    assert [kind for _, kind, _ in told.reports] == (["started"] + ["heartbeat"] * 50 + ["exited"]) * 5


@pytest.mark.req("S0-29")
@pytest.mark.req("S0-26")
def test_a_closing_host_has_all_children_give_what_they_have_and_leave(tmp_path, told):
    with hosting(tmp_path, told) as host:
        for n in range(3):
            host.start(child(OBEDIENT, f"c-{n}")).result(WAIT_MAX_S)
        host.start(child(SAY + FOREVER, "stubborn")).result(WAIT_MAX_S)
        with pytest.raises(FleetError):
            host.start(service("nowhere-to-be-found")).result(WAIT_MAX_S)
        host.close(drain_s=1.0, grace_s=0.2)
        for n in range(3):
            assert [kind for who, kind, _ in told.reports if who == f"c-{n}"] == ["started", "heartbeat", "ack", "summary", "ack", "exited"]
            assert (told.of(f"c-{n}", "exited")[0].code, told.of(f"c-{n}", "exited")[0].asked) == (0, True)
        assert isinstance(told.of("stubborn", "exited")[0], Exit)
        for late in (host.start(child(OBEDIENT)), host.flush("c-1"), host.kill("c-1")):
            with pytest.raises(FleetError, match=r"closed|closing"):
                late.result(WAIT_MAX_S)
        host.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("agent-")]


def test_callers_on_many_threads_get_their_own_answers(host):
    for n in range(4):
        host.start(child(OBEDIENT, f"c-{n}")).result(WAIT_MAX_S)
    found: list[bool] = []

    def ask(n: int) -> None:
        found.extend(host.flush(f"c-{n}").result(WAIT_MAX_S).agent_id == f"c-{n}" for _ in range(25))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_MAX_S)
    assert found == [True] * 100
    assert not wait([host.stop(f"c-{n}", drain_s=5) for n in range(4)], WAIT_MAX_S).not_done
