"""One process at a time: a lock that the system lets go of when its holder dies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from instructjax.errors import UsageError

try:
    import fcntl
except ImportError:  # a system without it has no lock
    fcntl = None


@contextmanager
def hold_lock(path: Path, *, of: Path) -> Iterator[None]:
    """Holds a lock file while the block runs; makes its folder.

    The lock is the system's, on the open file, so one that a killed process held is free. File
    systems without locks are used without one. The block may delete the file.

    Args:
      path: the lock file; it holds the number of the process.
      of: what the lock is for, to name in the message.

    Raises:
      UsageError: another process holds it.
    """
    descriptor = _open_locked(path, of)
    try:
        with suppress(OSError):  # a full disk: the number is only for the message
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


def _open_locked(path: Path, of: Path) -> int:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue  # its folder went between the two lines: another process has just finished
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            if holder == str(os.getpid()):
                raise UsageError(
                    "this process is already writing it",
                    file=of,
                    remedy="end what does: leave its loop, or `close()` or `del` its generator",
                ) from None
            raise UsageError(
                f"another process{f' ({holder})' if holder else ''} is writing it",
                file=of,
                remedy="wait for it, stop it, or give another name",
            ) from None
        except FileNotFoundError:
            pass
        except OSError:
            return descriptor
        os.close(descriptor)
