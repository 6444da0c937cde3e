"""What a child and its host say to each other; law: one flush and one sequence at a time, and every wait has an end.

Everything runs on the loop of `host.Processes`. A child is never believed further than its pipe: who it is, the pipe says.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

from orchestrator.errors import FleetError
from schemas.frames import (
    AckFrame,
    BadFrame,
    ErrorFrame,
    FlushCommand,
    Frame,
    HeartbeatFrame,
    Member,
    SequenceCommand,
    SummaryFrame,
    line,
    read,
)
from schemas.messages import ErrorCode
from workers.child.budget import Budget
from workers.child.lines import Line
from workers.child.reports import Flushed, Reports, Sequenced, Source

FLUSH_ATTEMPTS_MAX = 2
DEAD_LETTER_CHARS_MAX = 2_000
DEAD_LETTERS_BURST, DEAD_LETTERS_PER_S = 100, 1.0
ERRORS_BURST, ERRORS_PER_S = 100, 1.0
HEARTBEATS_BURST, HEARTBEATS_PER_S = 100, 20.0
"""What is reported of one child; what is beyond is only counted, errors stay in its log. Summaries and acknowledgements have no such limit."""
STRAYS_TOLD = 5
LEAVING: tuple[Member, ...] = ("stop", "flush", "shutdown")


@dataclass(slots=True)
class _Flush:
    future: Future[Flushed]
    timeout_s: float
    sent_at: float
    attempts: int = 1
    timer: asyncio.TimerHandle | None = None


@dataclass(slots=True)
class _Sequence:
    future: Future[Sequenced]
    left: list[Member]
    summaries_owed: int  # by a flush of before
    acknowledged: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)  # acknowledgements that were not their turn
    timer: asyncio.TimerHandle | None = None


class Conversation:
    """One child: its frames in, our commands out."""

    def __init__(
        self, agent_id: str, say: Callable[[bytes], bool], note: Callable[[str, str], None], reports: Reports, source: Source
    ) -> None:
        self.agent_id = agent_id
        self.flush_latency_s: float | None = None
        self.flushes_missed = 0
        self.dead_letters = 0
        self._say = say
        self._note = note
        self._reports = reports
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._flush: _Flush | None = None
        self._sequence: _Sequence | None = None
        now = self._loop.time()
        self._letters = Budget(DEAD_LETTERS_BURST, DEAD_LETTERS_PER_S, now)
        self._errors = Budget(ERRORS_BURST, ERRORS_PER_S, now)
        self._heartbeats = Budget(HEARTBEATS_BURST, HEARTBEATS_PER_S, now)

    # --- what it says

    def heard(self, said: Line) -> None:
        """One line of its stdout."""
        if said.cut:
            self._set_aside(said, f"the line has {said.size} bytes, more than a frame may have")
            return
        if not said.text.strip():
            return
        try:
            frame = read(said.text)
        except BadFrame as bad:
            self._set_aside(said, str(bad))
            return
        if frame.agent_id not in {None, self.agent_id}:
            self._set_aside(said, f"it says that it is {frame.agent_id!r}, and its pipe belongs to {self.agent_id!r}")
            return
        self._take(frame, said.size)

    def _take(self, frame: Frame, size: int) -> None:
        sink = self._reports.sink
        match frame:
            case HeartbeatFrame():
                if self._heartbeats.spend(self._loop.time()):
                    self._report(size, sink.heartbeat, frame)
            case SummaryFrame():
                self._flushed()
                self._report(size, sink.summary, frame.text, frame)
            case AckFrame():
                self._acknowledged(frame)
                self._report(size, sink.acknowledged, frame)
            case ErrorFrame():
                self._note("ERROR", frame.message)
                if self._errors.spend(self._loop.time()):
                    self._report(size, sink.error, frame)

    def _set_aside(self, said: Line, reason: str) -> None:
        self.dead_letters += 1
        if self._letters.spend(self._loop.time()):
            if self._letters.skipped:
                reason = f"{reason} ({self._letters.skipped} more were dropped before it)"
                self._letters.skipped = 0
            text = said.text[:DEAD_LETTER_CHARS_MAX].decode(errors="backslashreplace")[:DEAD_LETTER_CHARS_MAX]
            self._report(len(said.text), self._reports.sink.dead_letter, text, reason)

    def _report(self, size: int, function: Callable[..., object], *args: object) -> None:
        self._reports.put(self._source, size, function, self.agent_id, *args)

    # --- flush

    def flush(self, future: Future[Flushed], timeout_s: float) -> None:
        """Ask for a summary; who asks while a flush is under way gets the outcome of that one."""
        if self._flush is not None:
            _follow(self._flush.future, future)
        elif self._sequence is not None:
            future.set_exception(self._busy())
        elif not self._say(line(FlushCommand())):
            future.set_exception(self._deaf())
        else:
            self._flush = _Flush(future, timeout_s, self._loop.time())
            self._flush.timer = self._loop.call_later(timeout_s, self._flush_missed)

    def _flushed(self) -> None:
        self.flushes_missed = 0
        if self._sequence is not None:
            self._sequence.summaries_owed -= 1
        flush, self._flush = self._flush, None
        if flush is not None:
            _cancel(flush.timer)
            self.flush_latency_s = self._loop.time() - flush.sent_at
            flush.future.set_result(Flushed(self.agent_id, self.flush_latency_s, flush.attempts))

    def _flush_missed(self) -> None:
        flush = self._flush
        assert flush is not None, "its timer is cancelled with it"
        self.flushes_missed += 1
        self._report(0, self._reports.sink.flush_missed, self.flushes_missed)
        if flush.attempts < FLUSH_ATTEMPTS_MAX and self._say(line(FlushCommand())):
            flush.attempts += 1
            flush.timer = self._loop.call_later(flush.timeout_s, self._flush_missed)
            return
        self._flush = None
        message = f"agent {self.agent_id!r} gave no summary within {flush.timeout_s:g} s, {flush.attempts} times asked"
        flush.future.set_exception(FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE))

    # --- sequence

    def sequence(self, future: Future[Sequenced], members: tuple[Member, ...], timeout_s: float) -> bool:
        """Have it do these in order; the outcome comes with the last acknowledgement, or when it has left. False if it is not even told."""
        if self._sequence is not None:
            future.set_exception(self._busy())
        elif not self._say(line(SequenceCommand(sequence=members))):
            future.set_exception(self._deaf())
        else:
            self._sequence = _Sequence(future, list(members), summaries_owed=1 if self._flush is None else 2)
            self._sequence.timer = self._loop.call_later(timeout_s, self._sequence_late, timeout_s)
            return True
        return False

    def leave(self, timeout_s: float) -> bool:
        """Ask it to give what it has and go, whatever else it was told; False if it does not listen."""
        self._sequence_failed("is told to leave")
        return self.sequence(Future(), LEAVING, timeout_s)

    def _acknowledged(self, frame: AckFrame) -> None:
        """The acknowledgement of a flush counts after its summary; one that comes out of turn belongs to a command of before, or to none."""
        sequence = self._sequence
        if sequence is None:
            return
        if frame.ack_command != sequence.left[0] or (frame.ack_command == "flush" and sequence.summaries_owed > 0):
            sequence.strays.append(frame.ack_command)
            return
        sequence.acknowledged.append(sequence.left.pop(0))
        if frame.ack_command == "flush":
            sequence.summaries_owed = 1
        if not sequence.left:
            self._sequence_done(left=False)

    def _sequence_done(self, *, left: bool) -> None:
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            _cancel(sequence.timer)
            sequence.future.set_result(Sequenced(self.agent_id, tuple(sequence.acknowledged), left))

    def _sequence_failed(self, reason: str) -> None:
        sequence, self._sequence = self._sequence, None
        if sequence is not None:
            _cancel(sequence.timer)
            message = f"agent {self.agent_id!r} {reason}"
            sequence.future.set_exception(
                FleetError(message, code=ErrorCode.AGENT_UNAVAILABLE, details={"acknowledged": sequence.acknowledged})
            )

    def _sequence_late(self, timeout_s: float) -> None:
        assert self._sequence is not None, "its timer is cancelled with it"
        strays = f", but out of turn {', '.join(self._sequence.strays[:STRAYS_TOLD])}" if self._sequence.strays else ""
        self._sequence_failed(f"did not acknowledge {self._sequence.left[0]} within {timeout_s:g} s{strays}")

    # --- the end

    def over(self) -> None:
        """It is gone: nobody waits for it any longer."""
        if self._sequence is not None:
            if self._sequence.left[0] == "shutdown":
                self._sequence_done(left=True)
            else:
                self._sequence_failed(f"ended before it acknowledged {self._sequence.left[0]}")
        if self._letters.skipped:
            self._report(0, self._reports.sink.dead_letter, "", f"{self._letters.skipped} more lines were no frames")
        flush, self._flush = self._flush, None
        if flush is not None:
            _cancel(flush.timer)
            flush.future.set_exception(FleetError(f"agent {self.agent_id!r} ended before its summary", code=ErrorCode.AGENT_UNAVAILABLE))

    def _busy(self) -> FleetError:
        return FleetError(
            f"agent {self.agent_id!r} is in the middle of a sequence; ask again when it is done", code=ErrorCode.INVALID_TRANSITION
        )

    def _deaf(self) -> FleetError:
        return FleetError(f"agent {self.agent_id!r} does not read its commands", code=ErrorCode.AGENT_UNAVAILABLE)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()


def _follow(first: Future[Flushed], second: Future[Flushed]) -> None:
    def pass_on(done: Future[Flushed]) -> None:
        error = done.exception()
        if error is not None:
            second.set_exception(error)
        else:
            second.set_result(done.result())

    first.add_done_callback(pass_on)
