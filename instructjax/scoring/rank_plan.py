"""Which prompts a ranking has scored for which examples, and what is known of each so far."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from instructjax.data.example import Example
from instructjax.errors import InstructJaxError
from instructjax.scoring.rank_prompts import count_candidates
from instructjax.scoring.rows import ScoredRow

REMEMBERED = 4096


@dataclass(kw_only=True, eq=False)
class Prompted:
    """The candidates of an example under one prompt, and their scores as they come."""

    example: Example
    rows: list[ScoredRow] | None = None
    log_probs: list[float] = field(default_factory=list)
    error: InstructJaxError | None = None

    @property
    def done(self) -> bool:
        return len(self.log_probs) == count_candidates(self.example)

    def add(self, row: ScoredRow) -> None:
        self.log_probs.append(row.log_prob)
        if self.rows is not None:
            self.rows.append(row)


@dataclass(kw_only=True, eq=False)
class Waiting:
    """An example that is being scored: as it is, and under its premise or without content."""

    example: Example
    answer: int | None
    own: Prompted
    others: Sequence[Prompted] = ()

    @property
    def prompted(self) -> tuple[Prompted, ...]:
        return (self.own, *self.others)

    @property
    def error(self) -> InstructJaxError | None:
        """Why it cannot be ranked; the prompt at fault may belong to an earlier example too."""
        error = next((one.error for one in self.prompted if one.error), None)
        if error is None:
            return None
        name = self.example.id
        return type(error)(error.message, file=error.file, row=name, remedy=error.remedy)

    @property
    def done(self) -> bool:
        prompted = self.prompted
        return any(one.error for one in prompted) or all(one.done for one in prompted)


class Plan:
    """Which prompts are scored for which examples, and what is known of each so far.

    A premise or an input without content often recurs with the same candidates: what was issued
    lately is not issued again.

    Examples are taken in one thread, which may be ahead, while another adds their scores.
    """

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self._issued: deque[tuple[int, Prompted]] = deque()
        self._by_example: dict[int, Prompted] = {}
        self._recent: OrderedDict[Any, Prompted] = OrderedDict()
        self.num_examples = self.num_prompts = 0

    def refuse(self, example: Example, error: InstructJaxError) -> None:
        """An example cannot be ranked, whatever its scores; it keeps its place in the order."""
        self.num_examples += 1
        own = Prompted(example=example, error=error)
        self.waiting.append(Waiting(example=example, answer=None, own=own))

    def take(
        self, example: Example, answer: int | None, variants: Sequence[Example]
    ) -> list[Example]:
        """What has to be scored for an example and has not been."""
        self.num_examples += 1
        own = Prompted(example=example, rows=[])
        fresh, others = [own], []
        for variant in variants:
            key = _identify(variant)
            one = self._recent.get(key)
            if one is None:
                one = self._recent[key] = Prompted(example=variant)
                fresh.append(one)
                if len(self._recent) > REMEMBERED:
                    self._recent.popitem(last=False)
            others.append(one)
        for one in fresh:
            self._issued.append((self.num_prompts, one))
            self._by_example[id(one.example)] = one
            self.num_prompts += 1
        self.waiting.append(Waiting(example=example, answer=answer, own=own, others=others))
        return [one.example for one in fresh]

    def fail(self, example: Example, error: InstructJaxError) -> None:
        """An issued prompt cannot be encoded."""
        self._by_example[id(example)].error = error

    def add(self, row: ScoredRow) -> None:
        """A score has come; scores come in the order of issue."""
        while self._issued[0][0] < row.scored.request.row:
            _, one = self._issued.popleft()
            del self._by_example[id(one.example)]
        self._issued[0][1].add(row)


def _identify(example: Example) -> Any:
    """What decides an example's scores, to look it up by."""
    return (
        example.instruction,
        example.input,
        example.system,
        example.history,
        None if example.prompt_ids is None else tuple(example.prompt_ids),
        example.outputs,
        example.outputs_ids,
    )
