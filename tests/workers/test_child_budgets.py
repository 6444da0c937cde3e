"""Lines, budgets and paces: small machines that keep floods small."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.child.budget import Budget, Pace
from workers.child.lines import Lines


def cut(data: bytes, places: list[int]) -> list[bytes]:
    ends = sorted({place % (len(data) + 1) for place in places})
    return [data[start:end] for start, end in zip([0, *ends], [*ends, len(data)], strict=True)]


@given(
    st.lists(st.binary(max_size=30).filter(lambda line: b"\n" not in line), max_size=10),
    st.lists(st.integers(0, 400), max_size=10),
    st.booleans(),
)
def test_lines_are_the_same_however_the_bytes_come(lines, places, finished):
    data = b"\n".join(lines) + (b"\n" if finished and lines else b"")
    reader = Lines(10)
    found = [line for piece in cut(data, places) for line in reader.feed(piece)] + list(reader.end())
    whole = data.split(b"\n")
    expected = whole[:-1] if whole[-1] == b"" else whole
    assert [line.size for line in found] == [len(line) for line in expected]
    assert [line.text for line in found] == [line[:10].removesuffix(b"\r") for line in expected]
    assert [line.cut for line in found] == [len(line) > 10 for line in expected]


def test_of_an_endless_line_no_more_than_its_beginning_is_held():
    reader = Lines(1000)
    for _ in range(1000):
        assert list(reader.feed(b"x" * 1000)) == []
    assert sum(map(len, reader._held)) == 1000
    (line,) = reader.feed(b"\n")
    assert (len(line.text), line.size, line.cut) == (1000, 1_000_000, True)


def test_a_budget_counts_what_it_does_not_allow():
    budget = Budget(3, 1.0, now=0.0)
    assert [budget.spend(0.0) for _ in range(5)] == [True, True, True, False, False]
    assert budget.skipped == 2
    assert [budget.spend(2.0) for _ in range(3)] == [True, True, False]
    assert [budget.spend(1000.0) for _ in range(4)] == [True, True, True, False], "no more than the burst is saved"


def test_who_takes_more_than_the_burst_waits_for_it():
    pace = Pace(100, 10.0, now=0.0)
    assert pace.take(100, 0.0) == 0.0
    assert pace.take(20, 0.0) == 2.0
    assert pace.take(0, 2.0) == 0.0
    assert pace.take(50, 7.0) == 0.0
    assert pace.take(150, 1000.0) == 5.0
