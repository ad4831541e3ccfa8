"""Data sets as token ids with weights: read and encoded once, before the first step."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from instructjax.data import Example, Reject, read_examples
from instructjax.data.fields import parse_fields
from instructjax.data.unusable import make_reject
from instructjax.errors import DataError, InstructJaxError, PromptError
from instructjax.finetuning.batch import WeightedIds
from instructjax.finetuning.config import DataOptions
from instructjax.finetuning.masks import weigh_tokens
from instructjax.prompts import PromptEncoder, Request
from instructjax.scoring.runs.shared_encoding import encode_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Sequences:
    """Training sequences in the order of their rows, one after the other in flat arrays.

    Attributes:
      ids, weights: of all tokens; see `WeightedIds`.
      starts: where each sequence begins, and at last where all end.
      responses: how many tokens of each are learned as a response.
      places: file and row of each.
      cells: what each is grouped by, "" for nothing.
    """

    ids: Int[np.ndarray, " tokens"]
    weights: Float[np.ndarray, " tokens"]
    starts: Int[np.ndarray, " starts"]
    responses: Int[np.ndarray, " N"]
    places: tuple[str, ...]
    cells: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> WeightedIds:
        weights = self.weights[self.starts[index] : self.starts[index + 1]]
        return WeightedIds(ids=self.ids_of(index), weights=weights, row=self.places[index])

    @cached_property
    def sizes(self) -> Int[np.ndarray, " N"]:
        """Positions that each takes in a row: the last token needs none."""
        return np.diff(self.starts) - 1

    @cached_property
    def num_scored(self) -> Int[np.ndarray, " N"]:
        """Tokens of each that have a weight."""
        return np.add.reduceat(self.weights != 0, self.starts[:-1], dtype=np.int64)

    def ids_of(self, index: int) -> Int[np.ndarray, " n"]:
        """All tokens of a sequence."""
        return self.ids[self.starts[index] : self.starts[index + 1]]

    @property
    def num_response_tokens(self) -> int:
        """Tokens that are learned as a response; those of prompts may have a weight as well."""
        return int(self.responses.sum())


class NothingUsable(DataError):
    """A data set without a row that can be used."""


def read_sequences(
    path: Path,
    encoder: PromptEncoder,
    options: DataOptions,
    *,
    reject: Callable[[Reject], None],
    prompt_loss_weight: float = 0.0,
) -> Sequences:
    """A data set, encoded.

    Args:
      path: a file or folder.
      encoder: of the model's prompts; its `max_length` is the longest sequence that fits a row.
      options: how rows are read and weighed.
      reject: takes each row that cannot be used.
      prompt_loss_weight: of the prompt's tokens.

    Raises:
      NothingUsable: none of its rows can be.
      UsageError, DataError: the data as a whole cannot be used.
    """
    rows: list[WeightedIds] = []
    cells: list[str] = []
    responses: list[int] = []
    count = 0
    fields = parse_fields(options.field)

    def encode(row: Example | Reject, number: int) -> list[Request] | Reject:
        if isinstance(row, Reject):
            return row
        try:
            chosen = options.references == "first" or row.answer is not None
            return encoder.encode(choose_output(row) if chosen else row, row=number)
        except (DataError, PromptError) as error:
            if row.prompt_ids is None:
                encoder.check()
            return make_reject(row, _in_rows(error))

    examples = read_examples(path, format=options.format, fields=fields)
    for row, made in encode_rows(examples, encode, shared=True):
        count += 1
        if isinstance(made, Reject):
            reject(made)
            continue
        rows += [_weigh(row, request, prompt_loss_weight) for request in made]
        responses += [sum(stop - start for start, stop in request.spans) for request in made]
        cell = "" if options.cell == "none" else getattr(row, options.cell) or ""
        cells += [cell] * len(made)
    if not rows:
        raise NothingUsable(f"none of its {count:,} rows can be used", file=path)
    sizes = np.array([0, *(len(row.ids) for row in rows)], np.int64)
    return Sequences(
        ids=np.concatenate([row.ids for row in rows]).astype(np.int32),
        weights=np.concatenate([row.weights for row in rows]).astype(np.float32),
        starts=np.cumsum(sizes),
        responses=np.array(responses, np.int64),
        places=tuple(row.row for row in rows),
        cells=tuple(cells),
    )


def check_files(options: DataOptions) -> None:
    """Opens every data file, before any time goes into a model.

    Raises:
      UsageError, DataError: see `read_examples`.
    """
    for path in (*options.data, *options.eval_data):
        read_examples(path, format=options.format, fields=parse_fields(options.field))


def join_sequences(parts: list[Sequences]) -> Sequences:
    """Several data sets as one, in order."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0, *(len(part.ids) for part in parts)])
    starts = [part.starts[:-1] + offset for part, offset in zip(parts, offsets, strict=False)]
    return Sequences(
        ids=np.concatenate([part.ids for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        starts=np.concatenate([*starts, offsets[-1:]]),
        responses=np.concatenate([part.responses for part in parts]),
        places=tuple(place for part in parts for place in part.places),
        cells=tuple(cell for part in parts for cell in part.cells),
    )


def choose_output(example: Example) -> Example:
    """The example with one response: the right one if it says so, else the first.

    Raises:
      DataError: the answer is none of the responses.

    >>> choose_output(Example(instruction="Add.", output=["2", "3"], answer=1)).output
    '3'
    """
    texts, ids = example.outputs, example.outputs_ids
    candidates = ids or texts
    if len(candidates) < 2:
        return example
    index = example.answer if isinstance(example.answer, int) else 0
    if isinstance(example.answer, str):
        index = texts.index(example.answer) if example.answer in texts else -1
    if not 0 <= index < len(candidates):
        raise DataError(
            f"the answer {example.answer!r:.80} is none of the {len(candidates)} responses",
            row=example.id,
            remedy="give the index or the text of one of them",
        )
    if ids:
        return dataclasses.replace(example, output_ids=ids[index], answer=None)
    return dataclasses.replace(example, output=texts[index], answer=None)


def _in_rows(error: InstructJaxError) -> InstructJaxError:
    """The encoder's limit is the length of a row."""
    remedy = (error.remedy or "").replace("max_length", "row_length") or None
    return type(error)(error.message, row=error.row, remedy=remedy)


def _weigh(example: Any, request: Request, prompt_loss_weight: float) -> WeightedIds:
    file, row = example.place or ("", example.id or "")
    weighed = weigh_tokens(request, prompt_loss_weight=prompt_loss_weight)
    return dataclasses.replace(weighed, row=f"{file}, {row}" if file else row)
