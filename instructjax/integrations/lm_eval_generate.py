"""What lm-evaluation-harness wants written: its `generate_until` requests as prompts and rules.

It differs from the harness' own `hf` in these respects: the text ends before the earliest stop
string, even where it begins within a token, and nothing is written after it; the whole model's
length is there for the context (with `truncation="left"`, room is left for the response).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from instructjax.errors import UsageError
from instructjax.integrations.lm_eval_requests import RequestEncoder
from instructjax.models.model import Model
from instructjax.sampling.engine import Sampler
from instructjax.sampling.responses import PromptToSample
from instructjax.sampling.rules import SamplingRules

MAX_NEW_TOKENS = 256  # where a task says nothing, as in the harness
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_RULES = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
_KNOWN = ("do_sample", "until", "seed", "use_cache", *_LENGTHS, *_RULES)
_ONLY = {"num_beams": 1, "num_return_sequences": 1}  # said by tasks, and what is done anyway
# Requests written at a time; what was written is on disk, where a cache is used, before the next.
CHUNK = 64


def parse_generation(kwargs: Mapping[str, Any]) -> tuple[SamplingRules, tuple[str, ...], int]:
    """Rules, stop strings and tokens of a request's `generation_kwargs`.

    As in the harness, nothing is drawn unless `do_sample` is true or a temperature is given.

    Raises:
      UsageError: something that cannot be done here.

    >>> parse_generation({"until": "Q:", "max_gen_toks": 8})[1:]
    (('Q:',), 8)
    """
    for name, value in kwargs.items():
        if name not in (*_KNOWN, *_ONLY) or _ONLY.get(name, value) != value:
            raise UsageError(
                f"generation_kwargs hold {name}: {value!r}",
                remedy=f"use no others than {', '.join(sorted(_KNOWN))}",
            )
    rules = SamplingRules(**{name: kwargs[name] for name in _RULES if _given(kwargs, name)})
    if not kwargs.get("do_sample", _given(kwargs, "temperature") and not rules.greedy):
        rules = SamplingRules(repetition_penalty=rules.repetition_penalty, temperature=0.0)
    until = kwargs.get("until") or ()
    until = (until,) if isinstance(until, str) else until
    if not all(isinstance(string, str) for string in until):
        raise UsageError(f"until is {until!r}", remedy="give a string or a list of strings")
    lengths = [kwargs[name] for name in _LENGTHS if _given(kwargs, name)]
    length = lengths[0] if lengths else MAX_NEW_TOKENS
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UsageError(
            f"the tokens to write are {length!r}", remedy="give a whole number above 0"
        )
    if not isinstance(kwargs.get("seed") or 0, int):
        raise UsageError(f"seed is {kwargs['seed']!r}", remedy="give a whole number")
    return rules, tuple(string for string in until if string), length


def _given(kwargs: Mapping[str, Any], name: str) -> bool:
    return kwargs.get(name) is not None


def write_responses(
    model: Model,
    encoder: RequestEncoder,
    requests: Sequence[tuple[str, Mapping[str, Any], str]],
    *,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[list[tuple[int, str, tuple[str, ...]]]]:
    """Index of the request, text and the prompt's flags, a chunk at a time.

    Args:
      model: who writes.
      encoder: of contexts.
      requests: (context, generation_kwargs, name); the name, the seed among the kwargs, and how
        often the name came before decide the draws.
      on_tokens: called with the number of tokens written since.

    Raises:
      UsageError: `generation_kwargs` that cannot be done; names the first request with them.
      PromptError: a context cannot be encoded faithfully, or is too long.
    """
    groups: dict[str, list[int]] = {}
    for i, (_, kwargs, _) in enumerate(requests):
        groups.setdefault(json.dumps(kwargs, sort_keys=True, default=str), []).append(i)
    seen: Counter[str] = Counter()
    for members in groups.values():
        kwargs = requests[members[0]][1]
        try:
            rules, stops, length = parse_generation(kwargs)
        except UsageError as error:
            name = requests[members[0]][2]
            raise UsageError(error.message, row=name, remedy=error.remedy) from None
        seed = kwargs.get("seed") or 0
        sampler = Sampler(model, rules=rules, stop=stops, seed=seed)
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            prompts, flags = [], []
            for i in chunk:
                context, _, name = requests[i]
                request = encoder.encode_context(context, row=i, name=name, room=length)
                flags.append(request.flags)
                ids = np.asarray(request.ids[: request.spans[-1][0]])
                repeat, seen[name] = seen[name], seen[name] + 1
                unique = f"{name}, repeat {repeat}"
                prompts.append(PromptToSample(ids=ids, name=unique, max_new_tokens=length))
            made = sampler.sample(prompts, on_tokens=on_tokens)
            yield [(chunk[one.prompt], one.text, flags[one.prompt]) for one in made]
