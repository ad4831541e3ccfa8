"""The database file of a score cache: opened, checked, and shared by processes."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from instructjax.errors import DataError, UsageError

_APPLICATION = 0x696A7863  # "ijxc"
_PATIENCE = 60.0  # seconds that another process may hold the file


def open_database(path: Path) -> sqlite3.Connection:
    """Opens a score cache, with its table `scores`; makes it if there is none.

    Raises:
      UsageError: the file is of another program.
      DataError: it is damaged or cannot be opened.
    """
    with blaming(path):
        # Used by one thread at a time, but not always by the one that opened it.
        database = sqlite3.connect(
            path, timeout=_PATIENCE, isolation_level=None, check_same_thread=False
        )
        try:
            _prepare(database, path)
        except BaseException:
            database.close()
            raise
        return database


@contextmanager
def transaction(database: sqlite3.Connection) -> Iterator[None]:
    """What the block writes is there whole, and on disk, or not at all."""
    database.execute("BEGIN IMMEDIATE")
    try:
        yield
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Turns sqlite's errors, and values that are not as they were written, into a DataError."""
    try:
        yield
    except (sqlite3.OperationalError, sqlite3.InterfaceError) as error:
        raise DataError(
            f"the score cache cannot be used: {error}",
            file=path,
            remedy="see that its disk has space and that it can be written, or leave the cache out",
        ) from error
    except (sqlite3.DatabaseError, ValueError) as error:
        raise DataError(
            f"the score cache is damaged ({error})",
            file=path,
            remedy="delete it; its scores are then computed again",
        ) from error


def _prepare(database: sqlite3.Connection, path: Path) -> None:
    database.execute("BEGIN")  # both are read of one state: another process may be making the file
    (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = database.execute("PRAGMA application_id").fetchone()
    database.execute("COMMIT")
    if application != _APPLICATION and (application or tables):
        raise UsageError("is not a score cache", file=path, remedy="give another folder")
    _use_wal(database)
    database.execute("PRAGMA synchronous = FULL")
    if application != _APPLICATION or not tables:
        with transaction(database):
            database.execute(
                "CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )
            database.execute(f"PRAGMA application_id = {_APPLICATION}")


def _use_wal(database: sqlite3.Connection) -> None:
    """Readers and a writer at once. The change is not covered by sqlite's own waiting."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            database.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
