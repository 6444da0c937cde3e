"""A caller's own SQLAlchemy session: our rows in its transaction, and an action when that has committed; law: rolled back, nothing happens."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from sqlalchemy import event

from orchestrator.errors import InvalidArgument
from orchestrator.store import Store
from orchestrator.store.transaction import Transaction

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, SessionTransaction

_WAITING = "orchestrator.after_commit"  # key in `Session.info`


def joined(store: Store, session: Session) -> Transaction:
    """Our part of the transaction of `session`, begun if need be; raises InvalidArgument if it is not on a database of the store's kind."""
    from sqlalchemy.orm import Session  # noqa: PLC0415 - whoever has a session has it loaded; all others start sooner without

    given: Any = session
    if not isinstance(given, Session):
        raise InvalidArgument(f"session must be a SQLAlchemy or SQLModel Session, not {type(given).__name__}")
    connection = session.connection()
    if connection.dialect.name != store.dialect or connection.dialect.is_async:
        kind = f"{connection.dialect.name}+{connection.dialect.driver}"
        raise InvalidArgument(f"the session is on {kind}, workflows are in {store}: one transaction cannot span both")
    return store.joined(connection)


def after_commit(session: Session, key: Hashable, action: Callable[[], None]) -> None:
    """Call `action` once when the present transaction of `session` has committed, at most once per `key`; not at all if it rolls back."""
    session.info.setdefault(_WAITING, {})[key] = action
    if not event.contains(session, "after_commit", _committed):
        event.listen(session, "after_commit", _committed)
        event.listen(session, "after_transaction_end", _ended)


def _committed(session: Session) -> None:
    if session.in_nested_transaction():
        return  # a savepoint was released; the transaction may still roll back
    for action in session.info.pop(_WAITING, {}).values():
        action()


def _ended(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        session.info.pop(_WAITING, None)  # rolled back or closed: what was written is gone
