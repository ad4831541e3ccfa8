"""Many texts in a file, by number: memory holds where each begins, not the texts."""

from __future__ import annotations

import mmap
import tempfile
from array import array
from collections.abc import Iterable, Iterator
from types import TracebackType

import numpy as np
from jaxtyping import Int


class TextStore:
    """Texts kept in a temporary file that is gone when the block ends.

    >>> with TextStore(["Ä", "", "b"]) as texts:
    ...     len(texts), texts[0], list(texts.read(np.array([2, 1])))
    (3, 'Ä', ['b', ''])
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed at the end of the block)
        self._ends = array("q", [0])
        self._map: mmap.mmap | None = None
        for text in texts:
            self.add(text)

    def add(self, text: str) -> int:
        """Keeps a text; returns its number."""
        data = text.encode("utf-8", "surrogatepass")
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))
        self._map = None
        return len(self._ends) - 2

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if self._map is None and self._ends[-1]:
            self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        begin, end = self._ends[number], self._ends[number + 1]
        data = b"" if self._map is None else self._map[begin:end]
        return data.decode("utf-8", "surrogatepass")

    def read(self, numbers: Int[np.ndarray, " n"]) -> Iterator[str]:
        """The texts of these numbers, one at a time."""
        return (self[int(number)] for number in numbers)

    def chunks(
        self, numbers: Int[np.ndarray, " n"], num_bytes: int
    ) -> Iterator[tuple[int, list[str]]]:
        """Lists of texts that together have about so many bytes, and the place of their first."""
        if not len(numbers):
            return
        sizes = np.diff(np.frombuffer(self._ends, np.int64))[numbers] + 64
        chunk = np.cumsum(sizes) // num_bytes
        starts = np.flatnonzero(np.diff(chunk, prepend=-1))
        for begin, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
            yield int(begin), list(self.read(numbers[begin:end]))

    def __enter__(self) -> TextStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()
