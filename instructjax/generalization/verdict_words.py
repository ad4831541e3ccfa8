"""The decision, and the sentence that tells it with its numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from instructjax.generalization.estimate import Estimate
from instructjax.generalization.split_words import SplitWords
from instructjax.generalization.verdict_advice import Needed

Better = Literal["higher", "lower"]
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


def is_better(mean: Estimate | None, threshold: float, better: Better) -> Answer:
    """Whether a mean is above a threshold, or below it where lower is better, by its interval.

    >>> mean = Estimate(estimate=0.4, low=0.3, high=0.5, se=0.05, df=9.0, contrast="m1")
    >>> is_better(mean, 0.2, "higher"), is_better(mean, 0.2, "lower"), is_better(mean, 0.3, "lower")
    ('yes', 'no', 'no')
    """
    if mean is None:
        return "not measured"
    worst, best, limit = mean.low, mean.high, threshold
    if better == "lower":
        worst, best, limit = -mean.high, -mean.low, -threshold
    if worst > limit:
        return "yes"
    return "no" if best <= limit else "unclear"


def interaction_matters(
    interaction: Estimate | None, smallest_gap: float
) -> Literal["more", "less", "no"]:
    """Whether both new cost surely "more" than the two alone, or "less", and not by a trifle."""
    if interaction is None or abs(interaction.estimate) < smallest_gap:
        return "no"
    if interaction.high < 0:
        return "more"
    return "less" if interaction.low > 0 else "no"


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
    "inputs and instructions": "generalizes over {z} and {c}",
    "inputs": "generalizes over {z}, not over {c}",
    "instructions": "generalizes over {c}, not over {z}",
    "each alone": "generalizes over {z} and over {c}, not over both at once",
    "neither": "generalizes over neither {z} nor {c}",
}
Needs = Mapping[str, Needed | None]


def put_in_words(
    level: Level, inputs: Answer, instructions: Answer, *, words: SplitWords, needed: Needs
) -> str:
    """The verdict without its numbers.

    Args:
      level: from `find_level`.
      inputs, instructions: the answers it came from.
      words: of the split.
      needed: by question (inputs, instructions, both), what would halve the interval that leaves
        it open; None where the scores in question do not vary.

    >>> from instructjax.generalization.split_words import describe_split
    >>> from instructjax.generalization.split_recipes import SplitRecipe
    >>> needed = {"inputs": None, "both": None,
    ...           "instructions": Needed(unit="instructions", how="unseen", more=8)}
    >>> words = describe_split(SplitRecipe(by="paraphrase"))
    >>> print(put_in_words("inputs", "yes", "no", words=words, needed=needed))
    generalizes over inputs, not over new wordings of known tasks
    >>> print(put_in_words("unclear", "yes", "unclear", words=describe_split(None), needed=needed))
    generalizes over inputs; too few instructions to tell whether over instructions: 8 more unseen \
would halve the interval
    """
    if level in _DECIDED:
        return _DECIDED[level].format(z=words.inputs, c=words.instructions)
    if inputs == "yes" and instructions == "yes":
        both = _leave_open("over both at once", needed["both"], words.cells[3])
        return f"generalizes over {words.inputs} and over {words.instructions}; {both}"
    sides = (
        ("inputs", inputs, words.inputs, words.cells[1]),
        ("instructions", instructions, words.instructions, words.cells[2]),
    )
    parts = []
    for side, answer, what, cell in sides:
        # After "generalizes over inputs", "whether over instructions" will do.
        over = f"over {what}" if "yes" in (inputs, instructions) else f"it generalizes over {what}"
        parts.append(
            {
                "yes": f"generalizes over {what}",
                "no": f"does not generalize over {what}",
                "unclear": _leave_open(over, needed[side], cell),
                "not measured": f"nothing measured about {cell}",
            }[answer]
        )
    if inputs == "unclear" and instructions == "yes":
        parts.reverse()
    return "; ".join(parts)


def _leave_open(over: str, needed: Needed | None, cell: str) -> str:
    if needed is None:
        return f"scores of {cell} do not vary, so they do not tell whether {over}"
    return f"too few {needed.unit} to tell whether {over}: {needed.say()}"
