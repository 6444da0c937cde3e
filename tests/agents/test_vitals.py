"""What hosts measure: always at once, whatever the machine or a driver does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from orchestrator.clock import SYSTEM
from workers.gpu import Gpu, Vram, ask, parse
from workers.vitals import Meter


@pytest.fixture
def nvidia(tmp_path, monkeypatch):
    """A PATH with nothing but this nvidia-smi, or with none."""

    def put(script: str | None) -> None:
        if script is not None:
            program = tmp_path / "nvidia-smi"
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin" if script is not None else str(tmp_path))

    return put


@pytest.mark.req("S3-07")
def test_a_reading_of_the_machine_is_plausible():
    meter = Meter()
    sum(number * number for number in range(300_000))
    found = meter.read()
    assert 0 <= found.cpu_percent <= 100
    assert 0 < found.memory_percent < 100
    assert found.free_mem_mb > 1
    assert found.load >= 0
    assert found.rss_mb > 1


@pytest.mark.req("S3-22")
def test_what_something_cost_is_measured_between_two_moments():
    meter = Meter()
    cost = meter.begin()
    deadline = SYSTEM.monotonic() + 0.1
    while SYSTEM.monotonic() < deadline:
        pass
    found = meter.end(cost)
    assert found.duration_ms >= 100
    assert found.cpu_percent > 0


@pytest.mark.req("S3-08")
def test_without_nvidia_smi_there_is_no_graphics_memory(nvidia):
    nvidia(None)
    assert ask() == Vram(0.0, 0.0)


@pytest.mark.req("S3-08")
def test_what_nvidia_smi_says_is_reported_as_the_sum_over_all_cards(nvidia):
    nvidia("echo '1000, 4000'; echo '500, 8000'")
    gpu = Gpu()
    gpu.read()
    assert gpu.settle(5) == Vram(1500.0, 12_000.0)
    assert gpu.read() == Vram(1500.0, 12_000.0)


@pytest.mark.req("S3-08")
@pytest.mark.parametrize("script", ["echo no devices; exit 9", "echo gibberish", "echo '1, 2, 3'", "exit 0"])
def test_whatever_else_nvidia_smi_says_means_none(nvidia, script):
    nvidia(script)
    assert ask() == Vram()


@pytest.mark.req("S3-08")
def test_nvidia_smi_that_hangs_is_never_waited_for_and_leaves_nothing_behind(nvidia, tmp_path):
    nvidia(f"echo $$ > {tmp_path}/pid; sleep 1000 & echo $! >> {tmp_path}/pid; wait")
    gpu = Gpu(timeout_s=0.5)
    began = time.perf_counter()
    assert gpu.read() == Vram()
    assert gpu.read() == Vram()
    assert time.perf_counter() - began < 0.2
    assert gpu.settle(10) == Vram()
    for pid in (tmp_path / "pid").read_text().split():
        assert gone(int(pid)), "killed with what it had started"


def test_an_answer_that_is_no_answer_is_told_apart():
    assert parse("") == Vram()
    with pytest.raises(ValueError, match="unexpected"):
        parse("1, 2, 3")


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
    return False
