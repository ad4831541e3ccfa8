"""What a ranking asks of an example: its candidates, the right one, and the prompts to score."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from instructjax.data.example import Example
from instructjax.errors import DataError
from instructjax.models.model import Model
from instructjax.prompts.encode import PromptEncoder
from instructjax.prompts.request import Request
from instructjax.scoring.ranking.options import RankOptions
from instructjax.scoring.rows import encode_row


def count_candidates(example: Example) -> int:
    """How many y an example has, as text or as ids."""
    return len(example.outputs) or len(example.outputs_ids)


def find_answer(example: Example, row: int) -> int | None:
    """Index of an example's right candidate; None where it is not known.

    Args:
      example: with its candidates.
      row: index of the example in the input, to name it by where it has no id.

    Raises:
      DataError: there are fewer than two candidates, or the answer is none of them, or neither
        an integer nor a text.

    >>> find_answer(Example(output=["2", "3"], answer="3"), 0)
    1

    A text of digits that is no candidate is an index:

    >>> find_answer(Example(output=["red", "blue"], answer="0"), 0)
    0
    """
    count, answer = count_candidates(example), example.answer
    name = example.id or f"row {row + 1}"
    if count < 2:
        raise DataError(
            "there is one candidate only" if count else "there is no response",
            row=name,
            remedy="give `output` as a list of candidates",
        )
    if answer is None:
        return None
    if isinstance(answer, str):
        if answer in example.outputs:
            return example.outputs.index(answer)
        digits = answer.strip()
        index = int(digits) if digits.isdecimal() and len(digits) < 10 else -1
    elif isinstance(answer, int | np.integer) and not isinstance(answer, bool):
        index = int(answer)
    else:
        raise DataError(
            f"the answer is of type {type(answer).__name__}, neither an index nor a text",
            row=name,
            remedy="give an index as an integer from 0, and None where it is not known",
        )
    if not 0 <= index < count:
        if isinstance(answer, str):
            shown = f"{answer!r:.80}"
        else:  # Python does not write integers of thousands of digits
            shown = str(index) if abs(index) < 10**80 else "of more than 80 digits"
        raise DataError(
            f"the answer {shown} is none of the {count} candidates",
            row=name,
            remedy="give its index from 0, or its text exactly as in `output`",
        )
    return index


def encode_candidates(
    model: Model, encoder: PromptEncoder, example: Example, row: int, options: RankOptions
) -> list[Request]:
    """Requests for every candidate under the example's prompt, then under each other one.

    Raises:
      DataError: it cannot be ranked: it has fewer than two candidates, two that are the same, an
        answer that is none of them, or not what the normalization needs.
      PromptError: it cannot be encoded faithfully.
    """
    find_answer(example, row)
    name = example.id or f"row {row + 1}"
    requests = encode_row(model, encoder, example, row, ("cz",))
    seen: dict[bytes, int] = {}
    for k, request in enumerate(requests):
        first = seen.setdefault(request.target_ids.tobytes(), k)
        if first != k:
            raise DataError(
                f"candidates {first + 1} and {k + 1} are the same",
                row=name,
                remedy="give each response once: a posterior is over different ones",
            )
        if not request.num_bytes and options.normalization in ("per_character", "per_byte"):
            raise DataError(
                f"candidate {k + 1} has no text, thus no length",
                row=name,
                remedy="choose the normalization sum or per_token",
            )
    count = len(requests)
    for other, context in _other_prompts(example, options, name):
        requests += encode_row(model, encoder, other, row, (context,))
    if options.normalization == "pmi" and all(map(_same_ids, requests, requests[count:])):
        raise _premise_error(options.premise, name)
    return requests


def _same_ids(request: Request, other: Request) -> bool:
    return np.array_equal(request.ids, other.ids)


def _premise_error(premise: str | Example, name: str) -> DataError:
    shown: object = premise
    if isinstance(premise, Example):
        shown = premise.instruction or premise.input or list(premise.prompt_ids or ())
    return DataError(
        f"the premise {shown!r:.80} is the prompt itself",
        row=name,
        remedy="choose another premise, or give one as an Example (--premise-text)",
    )


def _other_prompts(
    example: Example, options: RankOptions, name: str
) -> Iterator[tuple[Example, str]]:
    """The prompts beside its own that candidates are scored under: examples with a context."""
    premise = options.premise
    if options.normalization == "pmi" and isinstance(premise, Example):
        outputs = {"output": example.output, "output_ids": example.output_ids}
        yield replace(premise, id=example.id, **outputs), "cz"
    elif options.normalization == "pmi" and isinstance(premise, str):
        kept = {"c": example.instruction, "z": example.input, "none": ""}[premise]
        if example.prompt_ids is not None or kept == example.instruction + example.input:
            raise _premise_error(premise, name)
        yield example, premise
    elif options.normalization == "calibrated":
        if example.prompt_ids is not None or not example.input:
            raise DataError(
                "there is no input that one without content could take the place of",
                row=name,
                remedy="give what is asked as `input`, and the task as `instruction`",
            )
        for text in options.content_free:
            if not (text or example.instruction or example.system or example.history):
                raise DataError(
                    f"the content-free input {text!r} leaves no prompt",
                    row=name,
                    remedy="give `content_free` (--content-free) other texts, or the row an "
                    "instruction",
                )
            yield replace(example, input=text), "cz"
