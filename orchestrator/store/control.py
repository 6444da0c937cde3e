"""Leases, queries, dead letters and beat's memory; law: who holds a lease is judged by the database's clock, and the first answer wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from orchestrator.store import documents, hints
from orchestrator.store.documents import DEAD_LETTER_COLUMNS, QUESTION_COLUMNS
from orchestrator.store.transaction import Reply, Row, Sender, Transaction
from schemas.runs import DeadLetter, Question

DEAD_LETTERS_PAGE_MAX = 1000

_TAKE_LEASE = """
INSERT INTO leases (name, holder, expires_at, epoch) VALUES (:name, :holder, {now} + :ttl_s, 1)
ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, expires_at = excluded.expires_at,
    epoch = leases.epoch + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END
WHERE leases.holder = excluded.holder OR leases.expires_at <= {now}
RETURNING epoch
"""
_ASK = """
INSERT INTO queries (id, run_id, queue, type, name, args, asked_at) VALUES (:id, :run_id, :queue, :type, :name, :args, {now})
ON CONFLICT DO NOTHING
"""
_QUESTIONS = f"""
SELECT {QUESTION_COLUMNS} FROM queries
WHERE answered_at IS NULL AND {{in queue :queues}} AND {{in type :types}} ORDER BY asked_at LIMIT :batch_max
"""  # noqa: S608 - columns of our own
_ANSWER = """
UPDATE queries SET answer = v.answer, failure = v.failure, answered_at = {now} FROM {rows id:text, answer:text, failure:text}
WHERE {at queries.id v.id} AND queries.answered_at IS NULL RETURNING queries.id
"""
_ANSWERED = f"SELECT {QUESTION_COLUMNS} FROM queries WHERE {{in id :ids}} AND answered_at IS NOT NULL"  # noqa: S608 - columns of our own
_PRUNE_QUESTIONS = "DELETE FROM queries WHERE asked_at <= {now} - :older_than_s RETURNING id"
_ADD_DEAD_LETTER = """
INSERT INTO dead_letters (id, kind, reason, at, run_id, seq, document) VALUES (:id, :kind, :reason, {now}, :run_id, :seq, :document)
ON CONFLICT DO NOTHING
"""
_DEAD_LETTERS = f"""
SELECT {DEAD_LETTER_COLUMNS} FROM dead_letters d LEFT JOIN dead_letters last ON last.id = :after_id
WHERE last.id IS NULL OR (d.at, d.id) < (last.at, last.id) ORDER BY d.at DESC, d.id DESC LIMIT :most
"""  # noqa: S608 - columns of our own
_SAVE_BEAT_ENTRIES = """
INSERT INTO beat_entries (name, last_run_at, total_run_count)
SELECT v.name, v.last_run_at, v.total_run_count FROM {rows name:text, last_run_at:float, total_run_count:int} WHERE true
ON CONFLICT (name) DO UPDATE SET last_run_at = excluded.last_run_at, total_run_count = excluded.total_run_count
"""


def take_lease(tx: Transaction, name: str, holder: str, ttl_s: float) -> bool:
    """Take or renew a lease for `ttl_s`; False while somebody else's stands."""
    return bool(tx.run(_TAKE_LEASE, name=name, holder=holder, ttl_s=float(ttl_s)))


def release_lease(tx: Transaction, name: str, holder: str) -> None:
    """Let others have the lease at once; the row stays and remembers how often it has changed hands."""
    tx.run("UPDATE leases SET expires_at = 0 WHERE name = :name AND holder = :holder", name=name, holder=holder)


def ask(tx: Transaction, question: Question) -> None:
    """Put a query where workers find it."""
    tx.run(
        _ASK,
        id=question.id,
        run_id=question.run_id,
        queue=question.queue,
        type=question.type,
        name=question.name,
        args=documents.dump(question.args),
    )


def questions(tx: Transaction, queues: Sequence[str], types: Sequence[str], batch_max: int) -> list[Question]:
    """Queries without an answer, the oldest first; several workers may find the same one."""
    return asked(send_questions(tx, queues=queues, types=types, batch_max=batch_max).rows())


def send_questions(tx: Sender, *, queues: Sequence[str], types: Sequence[str], batch_max: int) -> Reply:
    """Look for queries without an answer; `asked` reads the answer."""
    return tx.send(_QUESTIONS, queues=list(queues), types=list(types), batch_max=batch_max)


def asked(rows: Sequence[Row]) -> list[Question]:
    """The queries that were found, the oldest first."""
    return [documents.question(row) for row in rows]


def answer(tx: Transaction, answers: Sequence[Question]) -> set[str]:
    """Keep the answers in these questions; return the ids of those that were still open: the first answer wins."""
    hints.give(tx, tx.dialect, [question.id for question in answers])
    rows = [(q.id, documents.dump(q.answer), documents.dump_unless_none(q.failure)) for q in answers]
    return {question_id for (question_id,) in tx.run_rows(_ANSWER, sorted(rows))}


def answered(tx: Transaction, ids: Sequence[str]) -> list[Question]:
    """Those of these queries that have an answer."""
    return [documents.question(row) for row in tx.run(_ANSWERED, ids=list(ids))]


def prune_questions(tx: Transaction, older_than_s: float) -> int:
    """Forget queries, answered or not, that were asked longer ago than that; return how many."""
    return len(tx.run(_PRUNE_QUESTIONS, older_than_s=float(older_than_s)))


def add_dead_letter(tx: Transaction, letter: DeadLetter) -> None:
    """Set something aside; `at` is the database's now. The same id twice is one letter."""
    tx.run(
        _ADD_DEAD_LETTER,
        id=letter.id,
        kind=letter.kind,
        reason=letter.reason,
        run_id=letter.run_id,
        seq=letter.seq,
        document=documents.dump(letter.document),
    )


def dead_letters(tx: Transaction, *, limit: int = 100, after_id: str | None = None) -> list[DeadLetter]:
    """What was set aside, newest first; the page after the letter `after_id`."""
    rows = tx.run(_DEAD_LETTERS, after_id=after_id or "", most=min(limit, DEAD_LETTERS_PAGE_MAX))
    return [documents.dead_letter(row) for row in rows]


def remove_dead_letter(tx: Transaction, letter_id: str) -> bool:
    """Drop a letter for good; False if there is none."""
    return bool(tx.run("DELETE FROM dead_letters WHERE id = :id RETURNING id", id=letter_id))


def load_beat_entries(tx: Transaction) -> dict[str, tuple[float | None, int]]:
    """The (last run at, total run count) of each entry by name."""
    return {name: (at, count) for name, at, count in tx.run("SELECT name, last_run_at, total_run_count FROM beat_entries")}


def save_beat_entries(tx: Transaction, entries: Mapping[str, tuple[float | None, int]]) -> None:
    """Remember when entries ran."""
    tx.run_rows(_SAVE_BEAT_ENTRIES, [(name, at, count) for name, (at, count) in sorted(entries.items())])


def remove_beat_entries(tx: Transaction, names: Sequence[str]) -> None:
    """Forget entries that are not in the schedule any more."""
    tx.run("DELETE FROM beat_entries WHERE {in name :names}", names=list(names))
