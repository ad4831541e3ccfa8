"""What an evaluation measures, and what it must know of every row for that."""

from __future__ import annotations

from dataclasses import dataclass, field

from instructjax.data.example import Example
from instructjax.errors import DataError, UsageError
from instructjax.evaluation.generate import GenerateOptions
from instructjax.evaluation.ifeval.verify import Constraints, read_constraints
from instructjax.evaluation.metrics import Metric
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.request import Request
from instructjax.scoring.ranking.options import Normalization, RankOptions
from instructjax.scoring.ranking.prompts import count_candidates, encode_candidates, find_answer
from instructjax.scoring.rows import encode_row

_OF_OTHER_PROMPTS = ("pmi", "calibrated")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured and how.

    Attributes:
      metrics: in the order of the table.
      normalization: what `rank_accuracy` compares candidates by: "sum", "per_token",
        "per_character" or "per_byte".
      generation: how a model writes, where it has to.
      keep_predictions: whether the table holds what was written.
    """

    metrics: tuple[Metric, ...]
    normalization: Normalization = "sum"
    generation: GenerateOptions = field(default_factory=GenerateOptions)
    keep_predictions: bool = True

    def __post_init__(self) -> None:
        RankOptions(normalization=self.normalization)
        if self.normalization in _OF_OTHER_PROMPTS:
            raise UsageError(
                f"the normalization {self.normalization} needs prompts of its own",
                remedy="use `rank` for it",
            )

    @property
    def reads_scores(self) -> bool:
        """Whether log-probabilities are needed."""
        return any(metric.reads == "scores" for metric in self.metrics)

    @property
    def reads_text(self) -> bool:
        """Whether the model must write, or predictions must be given."""
        return any(metric.reads == "text" for metric in self.metrics)

    def asks(self, name: str) -> bool:
        """Whether a metric is among those measured."""
        return any(metric.name == name for metric in self.metrics)

    @property
    def rank_options(self) -> RankOptions:
        """What candidates are compared by."""
        return RankOptions(normalization=self.normalization)

    def describe(self, *, generates: bool) -> dict[str, str]:
        """The plan, for the metadata of the table."""
        about = {"metrics": ",".join(metric.name for metric in self.metrics)}
        if self.asks("rank_accuracy"):
            about["normalization"] = self.normalization
        if generates:
            about |= self.generation.describe()
        return about


def name_example(example: Example, row: int) -> str:
    """Its id, or "row N" with N counted from 1."""
    return example.id or f"row {row + 1}"


def check_row(example: Example, row: int, plan: Plan) -> None:
    """Checks what depends on the row alone, whichever model is evaluated.

    Raises:
      DataError: there is no prompt, the right answer is none of the candidates, or the row's
        constraints are no such.
    """
    name = name_example(example, row)
    texts = (example.instruction, example.input, example.system, example.history)
    if not any(texts) and example.prompt_ids is None:
        raise DataError("no instruction and no input", row=name, remedy="give one of them")
    if count_candidates(example) > 1:
        find_answer(example, row)
    find_constraints(example, row, plan)


def find_constraints(example: Example, row: int, plan: Plan) -> Constraints | None:
    """The row's verifiable constraints, if the plan asks for them."""
    if not plan.asks("ifeval"):
        return None
    return read_constraints(example.extra, name_example(example, row))


def find_references(example: Example, row: int) -> tuple[int, ...]:
    """Indices of the outputs that count as right: the answer where it is known, else all.

    >>> find_references(Example(output=["yes", "no"], answer="no"), 0)
    (1,)
    >>> find_references(Example(output=["yes", "yeah"]), 0)
    (0, 1)
    """
    count = count_candidates(example)
    answer = find_answer(example, row) if count > 1 else None
    return tuple(range(count)) if answer is None else (answer,)


def encode_example(
    model: Model, encoder: PromptEncoder, example: Example, row: int, plan: Plan
) -> list[Request]:
    """The requests of all its candidates, or of its references if nothing is ranked.

    Raises:
      DataError, PromptError: it cannot be scored; see `encode_row` and `encode_candidates`.
    """
    count = count_candidates(example)
    if not plan.reads_scores or not count:
        return []
    if plan.asks("rank_accuracy") and count > 1 and example.answer is not None:
        return encode_candidates(model, encoder, example, row, plan.rank_options)
    wanted = find_references(example, row)
    requests = encode_row(model, encoder, example, row, ("cz",))
    return [request for request in requests if request.candidate in wanted]
