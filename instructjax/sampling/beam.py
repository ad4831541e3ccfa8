"""Beam search: the responses of highest log Pr(y | c, z) that a search of limited width finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.models.decoding import DecodingParts
from instructjax.models.kv_cache import KVCache
from instructjax.models.model import Model
from instructjax.prompts.options import Truncation
from instructjax.sampling.api import check_count
from instructjax.sampling.engine import Sampler, on_one_device
from instructjax.sampling.rescore import rescore
from instructjax.sampling.responses import PromptToSample, Sampled, columns_for
from instructjax.sampling.result import Samples
from instructjax.sampling.rows import SampledRow, encode_prompt, make_prompt_encoder, to_prompt
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.slots import admit, decode_logits, empty_slots
from instructjax.sampling.stops import FinishReason
from instructjax.sampling.stream import describe_sampling
from instructjax.scoring.rows import list_examples


def beam_search(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    beams: int = 4,
    num_samples: int = 1,
    max_new_tokens: int = 64,
    stop_ids: Sequence[int] | None = None,
    layout: str | Path = "user",
    truncation: Truncation = "error",
    max_length: int | None = None,
    progress: bool | None = None,
) -> Samples:
    """The `num_samples` best responses that beam search finds for each example, best first.

    Responses are compared by log Pr(y | c, z), the stop token included, with no bonus for length;
    those that reach `max_new_tokens` unfinished compete with what they have. The search ends when
    no unfinished response can come among the best any more. Their log-probs are those of `score`.

    Args:
      model: from `load_model`.
      examples: one, or any iterable of them.
      beams: unfinished responses kept, the width of the search.
      num_samples: responses returned, at most `beams`; fewer where no more were found.
      max_new_tokens, stop_ids, layout, truncation, max_length: see `sample`.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an option out of range.
      DataError, PromptError: an example cannot be encoded; they name it.
    """
    check_count("beams", beams)
    kept = min(check_count("num_samples", num_samples), beams)
    check_count("max_new_tokens", max_new_tokens)
    model = on_one_device(model)
    sampler = Sampler(
        model,
        rules=SamplingRules(temperature=0),
        stop_ids=stop_ids,
        slots=max(beams, 2),
        max_length=max_length,
    )
    encoder = make_prompt_encoder(
        model,
        max_new_tokens=max_new_tokens,
        layout=layout,
        truncation=truncation,
        max_length=max_length,
    )
    limits = {"num_samples": kept, "max_new_tokens": max_new_tokens}
    rows: list[SampledRow] = []
    examples = list_examples(examples)
    total = len(examples) if isinstance(examples, list | tuple) else None
    steps = itertools.count()
    with ScoringProgress(total, show=progress, verb="searching") as bar:
        for place, example in enumerate(examples):
            request = encode_prompt(encoder, example, place)
            prompt = to_prompt(example, request, **limits)

            def tick(place: int = place) -> None:
                bar.update(place, next(steps) * beams)

            found = search(sampler, prompt, beams, on_step=tick)[:kept]
            for sampled in rescore(model, [prompt], found):
                name, flags = prompt.name, request.flags
                rows.append(SampledRow(id=name, example=example, flags=flags, sampled=sampled))
    about = {**describe_sampling(sampler, encoder, **limits, score=True), "beams": str(beams)}
    return Samples(rows=tuple(rows), tokenizer=model.tokenizer, metadata=about)


class _Beam:
    """The tokens of a response, and the log-prob of each."""

    def __init__(self, ids: tuple[int, ...], log_probs: tuple[np.float32, ...]) -> None:
        self.ids, self.log_probs = ids, log_probs
        self.total = float(np.sum(log_probs, dtype=np.float64))
        self.reason: FinishReason = "length"

    def grow(self, token: int, log_prob: np.float32) -> _Beam:
        return _Beam((*self.ids, token), (*self.log_probs, log_prob))


def search(
    sampler: Sampler,
    prompt: PromptToSample,
    beams: int,
    *,
    on_step: Callable[[], None] | None = None,
) -> list[Sampled]:
    """Finished responses to one prompt, best first, at most `beams`.

    Args:
      on_step: called before each step, which adds a token to every beam.
    """
    model, width = sampler.model, max(beams, 2)
    budget, size = sampler.budget(prompt), len(prompt.ids)
    columns = columns_for(size + budget - 1)
    dtype = jnp.dtype(model.dtype)
    slots = empty_slots(model.config, width, columns, dtype, penalty=False, mesh=None)
    ((_, keys, newcomer),) = sampler.admission([prompt], columns)
    for slot in range(width):
        slots = admit(slots, *keys, newcomer, jnp.int32(slot))
    cache, tokens, parents = slots.cache, np.full(width, prompt.ids[-1], np.int32), np.arange(width)
    alive, done = [_Beam((), ())], []
    # Enough of each beam's next tokens that stop tokens cannot crowd out the others.
    count = min(beams + len(sampler.stop_ids), model.config.vocab_size)
    for step in range(budget):
        if on_step is not None:
            on_step()
        position = jnp.int32(size - 1 + step)
        cache, ids, log_probs = _expand(
            sampler.parts, cache, tokens, parents, position, count=count
        )
        ids, log_probs = jax.device_get((ids, log_probs))
        grown = [
            (beam.total + float(log_probs[i, k]), i, int(ids[i, k]), log_probs[i, k])
            for i, beam in enumerate(alive)
            for k in range(count)
        ]
        grown.sort(key=lambda x: (-x[0], x[1], x[2]))
        following: list[tuple[int, _Beam]] = []
        for _, i, token, log_prob in grown:
            if len(following) == beams:
                break
            beam = alive[i].grow(token, log_prob)
            if token in sampler.stop_ids:
                beam.reason = "stop_token"
                done.append(beam)
            else:
                following.append((i, beam))
        done = sorted(done, key=lambda beam: -beam.total)[:beams]
        alive = [beam for _, beam in following]
        if not alive or (len(done) == beams and done[-1].total >= alive[0].total):
            alive = []
            break
        parents = np.array([i for i, _ in following] + [0] * (width - len(alive)))
        tokens = np.array([b.ids[-1] for b in alive] + [0] * (width - len(alive)), np.int32)
    best = sorted([*done, *alive], key=lambda beam: -beam.total)[:beams]
    return [_finish(sampler, beam, rank) for rank, beam in enumerate(best)]


@partial(jax.jit, static_argnames="count", donate_argnames="cache")
def _expand(
    parts: DecodingParts,
    cache: KVCache,
    tokens: Int[Array, " W"],
    parents: Int[Array, " W"],
    position: Int[Array, ""],
    *,
    count: int,
) -> tuple[KVCache, Int[Array, "W k"], Float[Array, "W k"]]:
    """Each beam's likeliest next tokens, after beams have taken the place of their parents."""
    cache = jax.tree.map(lambda x: x[parents], cache)
    positions = jnp.full(tokens.shape, position)
    logits, cache = decode_logits(parts, cache, tokens, positions)
    top, ids = jax.lax.top_k(logits, count)
    return cache, ids, top - jax.nn.logsumexp(logits, axis=-1, keepdims=True)


def _finish(sampler: Sampler, beam: _Beam, rank: int) -> Sampled:
    ids = np.array(beam.ids, np.int32)
    text = ids[:-1] if beam.reason == "stop_token" else ids
    known = [i for i in text.tolist() if i < sampler.model.tokenizer.vocab_size]
    return Sampled(
        prompt=0,
        sample=rank,
        ids=ids,
        text=sampler.model.tokenizer.decode(known),
        token_log_probs=np.array(beam.log_probs, np.float32),
        sampling_log_probs=np.zeros(len(ids), np.float32),
        finish_reason=beam.reason,
    )
