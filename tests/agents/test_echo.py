"""The echo agent, work type by work type: to try a fleet out one must be able to rely on it."""

from __future__ import annotations

import pytest

from orchestrator.clock import SYSTEM
from schemas.codes import ErrorCode
from schemas.messages import WorkRequest, WorkResult
from workers.hosted import Hosted
from workers.packages.echo import SLOW_S, Echo

pytestmark = [pytest.mark.req("S3-20", "S3-26")]


@pytest.fixture
def host(hosted) -> Hosted:
    found: Hosted = hosted(agent_id="e-1")
    return found


@pytest.fixture
def do(host, work):
    def ask(work_type: str = "", **parameters) -> WorkResult:
        result: WorkResult = host.execute(work(), WorkRequest(work_type=work_type, parameters=parameters))
        return result

    return ask


@pytest.mark.parametrize("given", [{}, {"x": 1}, {"deep": {"er": [1, None, "ü"]}}, {"text": "\x00\ud7ff"}])
def test_echo_gives_back_what_it_got(do, given):
    assert do("echo", **given).output == given


def test_echo_is_meant_if_nothing_is_said(do):
    assert (do(x=1).work_type, do(x=1).output) == ("echo", {"x": 1})


def test_echo_takes_no_time(do):
    assert do("echo").resources.duration_ms < 1000


def test_slow_echo_takes_as_long_as_it_is_told_and_then_gives_back_what_it_got(do):
    result = do("slow_echo", delay_s=0.3, x=1)
    assert result.output == {"delay_s": 0.3, "x": 1}
    assert result.resources.duration_ms >= 300


def test_slow_echo_takes_five_seconds_unless_it_is_told_otherwise():
    assert SLOW_S == 5.0


def test_fail_fails_with_what_it_was_told(do):
    result = do("fail", message="as you wish", why="test")
    assert (result.status, result.exit_code, result.error.code) == ("error", 1, ErrorCode.EXECUTION_FAILED)
    assert (result.error.message, result.error.details) == ("as you wish", {"message": "as you wish", "why": "test"})


def test_fail_needs_no_reason(do):
    assert do("fail").error.message == "told to fail"


def test_any_other_type_is_unknown_and_says_which_there_are(do):
    result = do("dance")
    assert (result.status, result.exit_code, result.error.code) == ("error", 1, ErrorCode.UNKNOWN_WORK_TYPE)
    assert "echo, slow_echo, fail" in result.error.message


def test_after_a_failure_it_goes_on(do, host):
    do("fail")
    do("dance")
    assert do("echo", x=1).output == {"x": 1}
    assert (host.done, host.failed) == (1, 2)


def test_its_summary_counts_works_since_the_last_one(do, host):
    do("echo")
    do("fail")
    assert host.flush() == {"works": 2}
    assert host.flush() == {"works": 0}


def test_it_does_nothing_before_it_is_asked():
    before = SYSTEM.monotonic()
    echo = Echo()
    assert echo.capabilities.keys() == {"echo", "slow_echo", "fail"}
    assert SYSTEM.monotonic() - before < 1
