"""What a ranking asks of an example: its candidates, the right one, and the prompts to score."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

from instructjax.data.example import Example
from instructjax.errors import DataError, UsageError
from instructjax.prompts.options import check_choice

Normalization = Literal["sum", "per_token", "per_character", "per_byte", "pmi", "calibrated"]
PREMISES = ("none", "c", "z")
CONTENT_FREE = ("N/A", "[MASK]", "")


def check_rank_options(
    normalization: str, premise: str | Example, content_free: Sequence[str]
) -> None:
    """Raises a UsageError that says which option is wrong and what it may be."""
    check_choice("normalization", normalization, get_args(Normalization))
    if not isinstance(premise, Example) and premise not in PREMISES:
        raise UsageError(
            f"there is no premise {premise!r}",
            remedy=f"choose one of {', '.join(PREMISES)}, or give an Example(instruction=...)",
        )
    if isinstance(content_free, str) or not content_free:
        raise UsageError(
            f"content_free is {content_free!r}", remedy="give a list of at least one text"
        )


def count_candidates(example: Example) -> int:
    """How many y an example has, as text or as ids."""
    return len(example.outputs) or len(example.outputs_ids)


def find_answer(example: Example) -> int | None:
    """Index of an example's right candidate; None where it is not known.

    Raises:
      DataError: there are fewer than two candidates, or the answer is none of them.

    >>> find_answer(Example(output=["2", "3"], answer="3"))
    1
    >>> find_answer(Example(output=["red", "blue"], answer="0"))
    0
    """
    count, answer = count_candidates(example), example.answer
    if count < 2:
        raise DataError(
            "there is one candidate only" if count else "there is no response",
            row=example.id,
            remedy="give `output` as a list of candidates",
        )
    if answer is None:
        return None
    if isinstance(answer, str):
        if answer in example.outputs:
            return example.outputs.index(answer)
        index = int(answer) if answer.strip().isdecimal() else -1
    else:
        index = int(answer)
    if not 0 <= index < count:
        raise DataError(
            f"the answer {answer!r:.80} is none of the {count} candidates",
            row=example.id,
            remedy="give its index from 0, or its text exactly as in `output`",
        )
    return index


def make_variants(
    example: Example, normalization: str, premise: str | Example, content_free: Sequence[str]
) -> list[Example]:
    """The other prompts that a normalization needs the candidates' scores under.

    Raises:
      DataError: the example has no text, or no z, to make them of.
    """
    if normalization == "pmi" and isinstance(premise, Example):
        return [
            replace(premise, id=example.id, output=example.output, output_ids=example.output_ids)
        ]
    if normalization == "pmi":
        made = [
            replace(
                example,
                instruction=example.instruction if premise == "c" else "",
                input=example.input if premise == "z" else "",
            )
        ]
        if example.prompt_ids is not None or made[0] == example:
            raise DataError(
                f"the premise {premise!r} is the prompt itself",
                row=example.id,
                remedy="choose another premise, or give one as an Example",
            )
        return made
    if normalization == "calibrated":
        if example.prompt_ids is not None or not example.input:
            raise DataError(
                "there is no input that one without content could take the place of",
                row=example.id,
                remedy="give what is asked as `input`, and the task as `instruction`",
            )
        return [replace(example, input=text) for text in content_free]
    return []


def describe_normalization(
    normalization: str, premise: str | Example, content_free: Sequence[str]
) -> dict[str, str]:
    """What a ranking's scores are, for its metadata."""
    about = {"normalization": normalization}
    if normalization == "pmi":
        about["premise"] = premise if isinstance(premise, str) else _describe_premise(premise)
    if normalization == "calibrated":
        about["content_free"] = json.dumps(list(content_free), ensure_ascii=False)
    return about


def _describe_premise(premise: Example) -> str:
    names = ("instruction", "input", "system", "history", "prompt_ids")
    values = {name: value for name in names if (value := getattr(premise, name))}
    return json.dumps(values, ensure_ascii=False, default=str)
