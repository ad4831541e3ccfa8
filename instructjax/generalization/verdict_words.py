"""The decision, and the sentence that tells it with its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from instructjax.generalization.estimate import Estimate

Answer = Literal["yes", "no", "unclear", "not measured"]
Level = Literal[
    "inputs and instructions",
    "inputs",
    "instructions",
    "each alone",
    "neither",
    "unclear",
]


def is_small(gap: Estimate | None, smallest_gap: float) -> Answer:
    """Whether a gap is smaller than the smallest that matters: the whole interval decides.

    >>> gap = Estimate(estimate=0.4, low=0.3, high=0.5, se=0.05, df=9.0, contrast="m0 - m2")
    >>> is_small(gap, 0.6), is_small(gap, 0.2), is_small(gap, 0.4), is_small(None, 0.4)
    ('yes', 'no', 'unclear', 'not measured')
    """
    if gap is None:
        return "not measured"
    if gap.high <= smallest_gap:
        return "yes"
    return "no" if gap.low >= smallest_gap else "unclear"


def is_above(mean: Estimate | None, threshold: float) -> Answer:
    """Whether a mean is above a threshold: the whole interval decides."""
    if mean is None:
        return "not measured"
    if mean.low > threshold:
        return "yes"
    return "no" if mean.high <= threshold else "unclear"


def combine(answers: Sequence[Answer]) -> Answer:
    """All must be yes; one no is enough for no.

    >>> combine(["yes", "unclear"]), combine(["unclear", "no"]), combine(["yes", "yes"])
    ('unclear', 'no', 'yes')
    """
    order: tuple[Answer, ...] = ("no", "unclear", "not measured")
    for answer in order:
        if answer in answers:
            return answer
    return "yes"


def find_level(inputs: Answer, instructions: Answer, both: Answer) -> Level:
    """The level from whether it generalizes over inputs, over instructions, and over both at once.

    >>> find_level("yes", "no", "no"), find_level("yes", "yes", "no")
    ('inputs', 'each alone')
    """
    if inputs == "yes" and instructions == "yes":
        levels: dict[Answer, Level] = {"yes": "inputs and instructions", "no": "each alone"}
        return levels.get(both, "unclear")
    if inputs == "no" and instructions == "no":
        return "neither"
    if inputs == "yes" and instructions == "no":
        return "inputs"
    if inputs == "no" and instructions == "yes":
        return "instructions"
    return "unclear"


_DECIDED = {
    "inputs and instructions": "generalizes over inputs and instructions",
    "inputs": "generalizes over inputs, not over instructions",
    "instructions": "generalizes over instructions, not over inputs",
    "each alone": "generalizes over inputs and over instructions, not over both at once",
    "neither": "generalizes over neither inputs nor instructions",
}


def put_in_words(
    level: Level,
    inputs: Answer,
    instructions: Answer,
    *,
    numbers: Sequence[str],
    unit: str,
    unseen: int,
    more: int | None,
    in_proportion: int | None = None,
) -> str:
    """One sentence.

    Args:
      level: from `find_level`.
      inputs, instructions: the answers it came from.
      numbers: "intra-task gap 0.02 +- 0.01" and the like.
      unit: what is counted, "instructions" or "tasks".
      unseen: how many unseen ones there are.
      more: how many more would halve the interval, where that is known.
      in_proportion: how many would, with seen ones in proportion, where unseen ones alone cannot.

    >>> print(put_in_words("inputs", "yes", "no", unit="instructions", unseen=8, more=None,
    ...     numbers=["intra-task gap 0.02 +- 0.01", "inter-task gap 0.41 +- 0.06"]))
    generalizes over inputs, not over instructions: intra-task gap 0.02 +- 0.01, inter-task gap \
0.41 +- 0.06
    >>> print(put_in_words("unclear", "yes", "unclear", unit="instructions", unseen=4, more=8,
    ...     numbers=["inter-task gap 0.10 +- 0.20"]))
    generalizes over inputs; too few instructions to tell whether over instructions: 8 more unseen \
would halve the interval: inter-task gap 0.10 +- 0.20
    """
    told = ", ".join(numbers)
    if level in _DECIDED:
        return f"{_DECIDED[level]}: {told}"
    parts = [
        _about_inputs(inputs),
        _about_instructions(instructions, inputs, unit, unseen, say_more(more, in_proportion)),
    ]
    return f"{'; '.join(parts)}: {told}" if told else "; ".join(parts)


def _about_inputs(inputs: Answer) -> str:
    return {
        "yes": "generalizes over inputs",
        "no": "does not generalize over inputs",
        "unclear": "too few scores to tell whether it generalizes over inputs",
        "not measured": "nothing measured about new inputs",
    }[inputs]


def _about_instructions(answer: Answer, inputs: Answer, unit: str, unseen: int, hint: str) -> str:
    if answer == "not measured":
        return "nothing measured about new instructions"
    if answer == "no":
        return "does not generalize over instructions"
    if answer == "yes" and inputs != "yes":
        return "generalizes over instructions"
    what = "over both at once" if answer == "yes" else "over instructions"
    if unseen == 1:
        return f"too few {unit} to tell whether {what}: only one is unseen"
    return f"too few {unit} to tell whether {what}: {hint}"


def say_more(more: int | None, in_proportion: int | None, unit: str = "") -> str:
    """What would halve the interval of the inter-task gap.

    >>> say_more(8, None), say_more(None, 24, "tasks")
    ('8 more unseen would halve the interval', '24 more unseen tasks, and seen ones in proportion, \
would halve the interval')
    """
    of = f" {unit}" if unit else ""
    if more is not None:
        return f"{more:,} more unseen{of} would halve the interval"
    if in_proportion is not None:
        return (
            f"{in_proportion:,} more unseen{of}, and seen ones in proportion, would halve the "
            "interval"
        )
    return f"more{of} alone would not halve the interval"
