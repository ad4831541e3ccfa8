"""Rows on their way into a split: kept in a file, known in memory by keys and places."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from jaxtyping import Int, UInt64

from instructjax.data import Example
from instructjax.data.rejects import BadRow
from instructjax.data.text_hash import normalize_text, text_hash
from instructjax.generalization.identity import to_key
from instructjax.generalization.splits import RowKeys
from instructjax.generalization.text_store import TextStore

_COLUMNS = ("id", "instruction", "input", "output", "answer", "system")
_NAMES = ("instruction_id", "input_id", "task", "category")


@dataclass(frozen=True, kw_only=True)
class Side:
    """The distinct texts of one side, c or z.

    Attributes:
      keys: of each text, sorted by nothing: in the order of their numbers.
      numbers: in the text store.
      of_row: the place of each row's text in `keys`.
    """

    keys: UInt64[np.ndarray, " U"]
    numbers: Int[np.ndarray, " U"]
    of_row: Int[np.ndarray, " N"]


class SplitRows:
    """Takes rows one at a time; about 150 bytes of memory a row, and the rest on disk.

    Args:
      path: of the file that rows are kept in; removed at the end of the block.
      fold_case: whether case makes no difference.

    Attributes:
      texts: of all instructions and inputs.
      unnamed: rows without a task, and without a category.
    """

    def __init__(self, path: Path, *, fold_case: bool = False) -> None:
        self._path, self._fold_case = path, fold_case
        self._stream = path.open("w+b")
        self._columns = {name: array("Q") for name in ("c", "z", "task", "category", "content")}
        self._raw = array("Q")
        self.unnamed = {"task": 0, "category": 0}
        self._offsets = array("q", [0])
        self._numbers: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self._no_input: int | None = None
        self.texts = TextStore()

    def add(self, example: Example) -> None:
        """Takes a row.

        Raises:
          BadRow: it is given as token ids, whose texts are not known, or has no instruction: there
            is no c that could be seen or unseen.
        """
        if example.prompt_ids is not None:
            raise BadRow("token ids: what c and z are is not known; give their texts")
        if not normalize_text(example.instruction):
            raise BadRow("no instruction: there is no c to be seen or unseen; give its text")
        hashes = [
            text_hash(text, fold_case=self._fold_case)
            for text in (example.instruction, example.input)
        ]
        keys = [to_key(hash) for hash in hashes]
        for known, key, text in zip(
            self._numbers, keys, (example.instruction, example.input), strict=True
        ):
            if key not in known:
                known[key] = self.texts.add(text)
        if not normalize_text(example.input):
            self._no_input = keys[1]
        row = {name: getattr(example, name) for name in (*_COLUMNS, *_NAMES)}
        row = {name: value for name, value in row.items() if value is not None}
        if example.turns:
            row["history"] = [asdict(turn) for turn in example.turns]
        content = json.dumps([hashes, row | {"id": ""}], sort_keys=True, ensure_ascii=False)
        row |= {"instruction_hash": hashes[0], "input_hash": hashes[1]}
        line = json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace")
        task = to_key(text_hash(f"task {example.task}")) if example.task else keys[0]
        category = to_key(text_hash(f"category {example.category}")) if example.category else task
        for name in self.unnamed:
            self.unnamed[name] += not getattr(example, name)
        values = (keys[0], keys[1], task, category, _digest(content.encode("utf-8", "replace")))
        for column, value in zip(self._columns.values(), values, strict=True):
            column.append(value)
        self._raw.append(_digest(line))
        self._stream.write(line)
        self._offsets.append(self._offsets[-1] + len(line))

    def __len__(self) -> int:
        return len(self._raw)

    def keys(self) -> RowKeys:
        """What the rows are known by."""
        c, z, task, category, content = (
            np.frombuffer(column, np.uint64) for column in self._columns.values()
        )
        empty = z == np.uint64(self._no_input or 0) if self._no_input is not None else z != z
        return RowKeys(
            instruction=c, input=z, task=task, category=category, content=content, no_input=empty
        )

    def side(self, which: int) -> Side:
        """The distinct instructions (0) or inputs (1), in the order of their keys."""
        column = np.frombuffer(self._columns["cz"[which]], np.uint64)
        keys, of_row = np.unique(column, return_inverse=True)
        numbers = np.array([self._numbers[which][int(key)] for key in keys], int)
        return Side(keys=keys, numbers=numbers, of_row=of_row)

    def order(self) -> Int[np.ndarray, " N"]:
        """Places of the rows in an order that what they say decides."""
        content = np.frombuffer(self._columns["content"], np.uint64)
        return np.lexsort((np.frombuffer(self._raw, np.uint64), content))

    def fingerprint(self) -> str:
        """Of what the rows say, ids aside, whatever their order."""
        content = np.sort(np.frombuffer(self._columns["content"], np.uint64))
        return hashlib.sha256(content.astype("<u8").tobytes()).hexdigest()[:32]

    def read(self, place: int) -> dict[str, Any]:
        """A row as the data contract writes it, with `instruction_hash` and `input_hash`."""
        begin, end = self._offsets[place], self._offsets[place + 1]
        self._stream.seek(begin)
        return json.loads(self._stream.read(end - begin))

    def write(
        self,
        path: Path,
        places: Int[np.ndarray, " n"],
        change: Callable[[dict[str, Any], int], dict[str, Any]] | None = None,
    ) -> None:
        """Writes rows of these places, in their order, a JSON object a line."""
        with path.open("w", encoding="utf-8") as out:
            for place in places.tolist():
                row = self.read(place)
                row = row if change is None else change(row, place)
                out.write(json.dumps(row, ensure_ascii=False) + "\n")

    def __enter__(self) -> SplitRows:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stream.close()
        self._path.unlink(missing_ok=True)
        self.texts.__exit__(kind, error, traceback)


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")
