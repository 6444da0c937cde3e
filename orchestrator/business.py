"""The database of your own records: that of `business_database_url`, else the store's; law: none of our tables is ever in it, and none of yours in ours.

    from orchestrator import business

    @activity.defn
    def book(order: Order) -> None:
        with business.session() as session:  # committed at the end of the block, rolled back if it raises
            session.add(Booking(order_id=order.id))

An activity may run twice: write what may already be there. Make your tables with `YourModel.metadata.create_all(business.engine())`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

from sqlalchemy import Engine
from sqlmodel import Session, create_engine

from orchestrator.settings import current

__all__ = ["engine", "session"]

ENGINES_MAX = 8  # databases that one process and its forks may use


def engine() -> Engine:
    """The pool of connections of this process to that database."""
    settings = current()
    return _engine(settings.business_database_url or settings.database_url, os.getpid())


@contextmanager
def session() -> Iterator[Session]:
    """A session in a transaction of its own."""
    with Session(engine()) as opened, opened.begin():
        yield opened


@lru_cache(maxsize=ENGINES_MAX)
def _engine(url: str, _pid: int) -> Engine:
    """A child of fork has no use for its parent's connections."""
    return create_engine(url, pool_pre_ping=True)
