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
_IGNORED = ("do_sample", "until", "seed", "use_cache", *_LENGTHS, *_RULES)
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
    unknown = sorted(set(kwargs) - set(_IGNORED))
    if unknown:
        raise UsageError(
            f"generation_kwargs hold {unknown[0]}",
            remedy=f"use no others than {', '.join(sorted(_IGNORED))}",
        )
    rules = {name: kwargs[name] for name in _RULES if kwargs.get(name) is not None}
    sampled = kwargs.get("do_sample", rules.get("temperature", 0) > 0)
    if not sampled:
        rules = {"repetition_penalty": rules.get("repetition_penalty", 1.0), "temperature": 0.0}
    until = kwargs.get("until") or ()
    until = (until,) if isinstance(until, str) else until
    length = next((kwargs[name] for name in _LENGTHS if kwargs.get(name) is not None), None)
    stops = tuple(string for string in until if string)
    return SamplingRules(**rules), stops, MAX_NEW_TOKENS if length is None else int(length)


def write_responses(
    model: Model,
    encoder: RequestEncoder,
    requests: Sequence[tuple[str, Mapping[str, Any], str]],
    *,
    on_tokens: Callable[[int], None] | None = None,
) -> Iterator[list[tuple[int, str]]]:
    """Texts by index of the request, a chunk at a time.

    Args:
      model: who writes.
      encoder: of contexts.
      requests: (context, generation_kwargs, name); the name, the seed among the kwargs, and how
        often the name came before decide the draws.
      on_tokens: called with the number of tokens written since.

    Raises:
      UsageError: `generation_kwargs` that cannot be done.
      PromptError: a context cannot be encoded faithfully, or is too long.
    """
    groups: dict[str, list[int]] = {}
    for i, (_, kwargs, _) in enumerate(requests):
        groups.setdefault(json.dumps(kwargs, sort_keys=True, default=str), []).append(i)
    seen: Counter[str] = Counter()
    for members in groups.values():
        kwargs = requests[members[0]][1]
        rules, stops, length = parse_generation(kwargs)
        seed = int(kwargs.get("seed") or 0)
        sampler = Sampler(model, rules=rules, stop=stops, seed=seed)
        for start in range(0, len(members), CHUNK):
            chunk = members[start : start + CHUNK]
            prompts = []
            for i in chunk:
                context, _, name = requests[i]
                # One token stands in for the response.
                request = encoder.encode_pair(context, "x", row=i, name=name, room=length - 1)
                ids = np.asarray(request.ids[: request.spans[-1][0]])
                repeat, seen[name] = seen[name], seen[name] + 1
                unique = f"{name}, repeat {repeat}"
                prompts.append(PromptToSample(ids=ids, name=unique, max_new_tokens=length))
            made = sampler.sample(prompts, on_tokens=on_tokens)
            yield [(chunk[one.prompt], one.text) for one in made]
