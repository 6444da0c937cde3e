"""Timers of runs in memory: tried when due, in order, for runs that still wait; what cannot be tried here is left to others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from workers.agenda import Agenda
from workers.instances import Held, Instances
from workers.timers import LEAD_S, Timers


def holding(**runs: set[int] | None) -> Instances:
    """Instances in memory that wait for these timers; None: claimed, and not in memory."""
    instances = Instances(100)
    for run_id, waits in runs.items():
        instance: Any = None if waits is None else SimpleNamespace(waits_for_timer=waits.__contains__, close=lambda: None)
        instances._held[run_id] = Held(1, 1, cast("Any", instance), "q", "t")
    return instances


def test_those_that_are_due_are_tried_in_the_order_of_their_times():
    timers = Timers(Agenda())
    timers.add("a", [(5.0, 1), (3.0, 2), (9.0, 3)])
    timers.add("b", [(4.0, 1)])
    assert timers.wait_s(1.0, 60.0) == pytest.approx(2.0 + LEAD_S)
    found = timers.take(5.0 + LEAD_S, holding(a={1, 2, 3}, b={1}))
    assert [(run_id, seq) for run_id, _, seq in found] == [("a", 2), ("b", 1), ("a", 1)]
    assert timers.take(5.0 + LEAD_S, holding(a={3})) == []
    assert timers.wait_s(5.0, 60.0) == pytest.approx(4.0 + LEAD_S)
    assert timers.wait_s(5.0, 1.0) == 1.0


def test_a_timer_that_was_cancelled_or_has_fired_is_forgotten_and_one_of_a_run_elsewhere_is_left_to_others():
    agenda = Agenda()
    timers = Timers(agenda)
    timers.add("a", [(1.0, 1)])
    assert timers.take(2.0, holding(a=set())) == []
    assert agenda.wait_s(2.0, 60.0) == 60.0
    timers.add("gone", [(1.0, 1)])
    timers.add("uncached", [(1.0, 1)])
    assert timers.take(2.0, holding(uncached=None)) == []
    assert agenda.wait_s(2.0, 60.0) < 1.0
