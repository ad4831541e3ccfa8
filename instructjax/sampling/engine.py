"""Prompts in, responses out: prompts computed in packed rows, responses written in slots.

Sequences share a cache of fixed slots; where one is finished, the next moves in. What is written
beside a sequence does not change a bit of what is computed for it; see `kv_cache`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from numbers import Integral
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.batching.packing import pack
from instructjax.errors import PromptError, UsageError
from instructjax.models.decoding import DecodingParts, prepare_decoding
from instructjax.models.kv_cache import cache_bytes, compute_keys
from instructjax.models.model import Model
from instructjax.models.rotary import length_classes
from instructjax.prompts.request import Request
from instructjax.sampling.draw import RuleValues, to_values
from instructjax.sampling.responses import (
    Draft,
    PromptToSample,
    Sampled,
    gather,
    key_of,
)
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.slots import AXIS, STEPS, Newcomer, Slots, admit, empty_slots, write
from instructjax.sampling.stops import StopFinder, list_stops, stop_mask
from instructjax.scoring.row_memory import free_bytes

SLOTS = 16
# Programs of other numbers of slots round differently. A choice that hangs by less than this is
# made again by the program of `SLOTS` slots, so that it does not matter which one wrote.
SAFE_MARGIN = 2e-4

_compute_keys = jax.jit(compute_keys)


@dataclass(kw_only=True)
class SamplingWork:
    """What a run has done so far.

    Attributes:
      prompt_tokens: of prompts, computed; shared prefixes of a row once.
      new_tokens: drawn and kept.
      steps: of the decoder.
      places: slots times steps.
      programs: (slots, columns) of every loop, and (row length, tile) of prompts.
    """

    prompt_tokens: int = 0
    new_tokens: int = 0
    steps: int = 0
    places: int = 0
    programs: set[tuple[str, int, int]] = field(default_factory=set)


class Sampler:
    """Writes responses of one model by one set of rules.

    The decoder's layers are kept as arrays of their own (see `prepare_decoding`), which takes their
    memory once more.

    Args:
      model: who writes.
      rules: how tokens are drawn.
      stop: strings that end a response, one or several.
      stop_ids: tokens that do; by default all that end a turn of the model's.
      seed: of the draws.
      slots: sequences written at a time, at most, on each device.
      max_length: tokens of prompt and response; by default as many as the model has room for.
      mesh: whose devices write, whatever its axes are called; by default that of the model. The
        decoder is whole on each of them.

    Raises:
      UsageError: a stop that is none, no slots, or devices of several processes.
    """

    def __init__(
        self,
        model: Model,
        *,
        rules: SamplingRules,
        stop: str | Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        seed: int = 0,
        slots: int = SLOTS,
        max_length: int | None = None,
        mesh: Mesh | None = None,
    ) -> None:
        mesh = model.mesh if mesh is None else mesh
        if mesh is not None and jax.process_count() > 1:
            raise UsageError("sampling over devices of several processes", remedy="use one process")
        # Slots are all that is split, so a mesh is no more than a row of devices.
        self.mesh = None if mesh is None else Mesh(mesh.devices.reshape(-1), (AXIS,))
        if isinstance(seed, bool) or not isinstance(seed, Integral):
            raise UsageError(f"seed is {seed!r}", remedy="give a whole number")
        self.model, self.rules, self.seed = on_one_device(model), rules, int(seed)
        self.work = SamplingWork()
        self._stop = list_stops(stop)
        known = [i for i in model.tokenizer.eos_ids if i < model.config.vocab_size]
        mask = stop_mask(model.config.vocab_size, known if stop_ids is None else stop_ids)
        self.stop_ids = tuple(np.flatnonzero(mask).tolist())
        if isinstance(slots, bool) or not isinstance(slots, int) or slots < 1:
            raise UsageError(f"slots is {slots!r}", remedy="give a number of at least 1")
        # The last token of a response needs no position.
        self._longest = model.config.max_positions + 1 if max_length is None else max_length
        self._slots, self._devices = slots, 1 if mesh is None else mesh.size
        self._values: RuleValues = self._put(to_values(rules))
        self._mask = self._put(jnp.asarray(mask))

    def _put(self, tree: Any) -> Any:
        """On every device of the mesh."""
        return tree if self.mesh is None else jax.device_put(tree, NamedSharding(self.mesh, P()))

    @cached_property
    def parts(self) -> DecodingParts:
        """The decoder, taken apart for steps of one token a slot."""
        return self._put(prepare_decoding(self.model.graphdef, self.model.params))

    def describe(self) -> dict[str, str]:
        """Rules, seed, stops and slots, as text by name."""
        return {
            **self.rules.describe(),
            "seed": str(self.seed),
            "stop": json.dumps(self._stop, ensure_ascii=False),
            "stop_ids": ",".join(map(str, self.stop_ids)),
            "slots": str(self._slots),
        }

    def sample(
        self,
        prompts: Sequence[PromptToSample],
        *,
        on_tokens: Callable[[int], None] | None = None,
    ) -> Iterator[Sampled]:
        """All responses, each as soon as it is finished.

        Args:
          prompts: a window of them.
          on_tokens: called with the number of tokens written since the last call.

        Raises:
          PromptError: a prompt is empty, leaves no room, or holds an id that the model lacks.
        """
        sizes = [self._check(prompt, i) for i, prompt in enumerate(prompts)]
        counts = [prompt.num_samples for prompt in prompts]
        # One sequence alone is written fastest in a slot of its own: a matrix times one row.
        lone = sum(counts) == 1 and self.mesh is None and self._margins_tell
        for columns, members in gather(sizes, counts, self._slots * self._devices):
            pairs = [(i, sample) for i in members for sample in range(prompts[i].num_samples)]
            count = 1 if lone else self._slots
            yield from self._sample_group(prompts, pairs, columns, count, on_tokens)

    @property
    def _margins_tell(self) -> bool:
        """Whether a choice with a margin is the same after another rounding; see `Drawn`."""
        return {"top_k", "top_p", "min_p"}.isdisjoint(self._values.in_force)

    def budget(self, prompt: PromptToSample) -> int:
        """Tokens that may be drawn after a prompt: its limit, or what there is room for."""
        return min(prompt.max_new_tokens, self._longest - len(prompt.ids))

    def _check(self, prompt: PromptToSample, place: int) -> int:
        """The tokens of the longest sequence that the prompt may become."""
        config, size = self.model.config, len(prompt.ids)
        problem = ""
        if not size:
            problem = "the prompt is empty"
        elif size >= self._longest:
            problem = f"{size} tokens, and at most {self._longest - 1} leave room for a response"
        elif prompt.ids.min() < 0 or prompt.ids.max() >= config.vocab_size:
            problem = f"a token id is not one of the model's {config.vocab_size}"
        elif prompt.max_new_tokens < 1 or prompt.num_samples < 1:
            raise UsageError("nothing is to be written", remedy="ask for 1 token and 1 sample")
        row = prompt.name or f"row {place + 1}"
        if problem:
            raise PromptError(problem, row=row)
        longest = size + self.budget(prompt) - 1
        classes = length_classes(config)
        if classes is not None and classes(longest) != classes(max(size - 1, 1)):
            raise PromptError(
                f"with {self.budget(prompt)} new tokens its length would pass the model's original "
                "context, where positions turn by the length of the whole",
                row=row,
                remedy=self._advise(size, classes),
            )
        return longest

    def _advise(self, size: int, classes: Callable[[int], Hashable]) -> str:
        """What of a prompt of so many tokens can be done within a class of lengths."""
        first, last = max(size - 1, 1), self._longest - 1
        same = [n for n in range(size, last + 1) if classes(n) == classes(first)]
        return f"ask for at most {len(same)} new tokens" if same else "shorten the prompt"

    def _sample_group(
        self,
        prompts: Sequence[PromptToSample],
        pairs: Sequence[tuple[int, int]],
        columns: int,
        count: int,
        on_tokens: Callable[[int], None] | None,
    ) -> Iterator[Sampled]:
        """Responses for pairs of (prompt, sample), in `count` slots of `columns` on each device."""
        config, dtype = self.model.config, jnp.dtype(self.model.dtype)
        penalty = "repetition_penalty" in self._values.in_force
        total = count * self._devices
        _check_memory(cache_bytes(config, count, columns, dtype), count, columns)
        slots = empty_slots(config, total, columns, dtype, penalty=penalty, mesh=self.mesh)
        self.work.programs.add(("write", count, columns))
        waiting = self._newcomers(prompts, pairs, columns)
        # Each device gets its first before any gets its second.
        free, writing = deque(np.arange(total).reshape(-1, count).T.ravel().tolist()), {}
        doubtful: list[tuple[int, int]] = []
        following = next(waiting, None)
        while writing or following is not None:
            while free and following is not None:
                (prompt, sample), keys, newcomer = following
                slot = free.popleft()
                slots = admit(slots, *keys, newcomer, self._put(jnp.int32(slot)), mesh=self.mesh)
                finder = StopFinder(self.model.tokenizer, self._stop)
                writing[slot] = Draft(prompt, sample, self.budget(prompts[prompt]), finder)
                following = next(waiting, None)
            enough = len(writing) - 1 if following is not None else 0
            slots, fresh = self._write(slots, writing, enough)
            if on_tokens is not None:
                on_tokens(fresh)
            for slot in [slot for slot, draft in writing.items() if draft.reason]:
                draft = writing.pop(slot)
                free.append(slot)
                unsure = count != SLOTS and self._margins_tell and draft.margin < SAFE_MARGIN
                if unsure:
                    doubtful.append((draft.prompt, draft.sample))
                else:
                    self.work.new_tokens += len(draft.ids)
                    yield draft.finish()
        if doubtful:
            del slots
            yield from self._sample_group(prompts, doubtful, columns, SLOTS, None)

    def admission(self, prompts: Sequence[PromptToSample], columns: int) -> Iterator[Any]:
        """One ((prompt, sample), keys and values, newcomer) a prompt, to be admitted to slots."""
        for i, prompt in enumerate(prompts):
            self._check(prompt, i)
        return self._newcomers(prompts, [(i, 0) for i in range(len(prompts))], columns)

    def _write(self, slots: Slots, writing: dict[int, Draft], enough: int) -> tuple[Slots, int]:
        idle = self._put(jnp.int32(STEPS)), self._put(jnp.int32(enough))
        slots, written = write(self.parts, slots, self._values, self._mask, *idle, mesh=self.mesh)
        steps, *columns, wrote = jax.device_get(
            (
                written.steps,
                written.token,
                written.log_prob,
                written.sampling_log_prob,
                written.margin,
                written.wrote,
            )
        )
        self.work.steps += int(steps)
        self.work.places += int(steps) * wrote.shape[1]
        fresh, ended = 0, []
        for slot, draft in writing.items():
            for step in np.flatnonzero(wrote[:steps, slot]):
                if not draft.reason:
                    draft.add([column[step, slot] for column in columns], self.stop_ids)
                    fresh += 1
            if draft.reason == "stop_string":
                ended.append(slot)
        if ended:
            live = slots.live.at[jnp.asarray(ended)].set(False)
            if self.mesh is not None:
                live = jax.device_put(live, NamedSharding(self.mesh, P(AXIS)))
            slots = slots.replace(live=live)
        return slots, fresh

    def _newcomers(
        self, prompts: Sequence[PromptToSample], pairs: Sequence[tuple[int, int]], columns: int
    ) -> Iterator[Any]:
        """Sequences in the order of the rows that their prompts are computed in, row by row."""
        members = sorted({prompt for prompt, _ in pairs})
        requests = [_to_request(prompts[i].ids, i) for i in members]
        for row in pack(requests, apart=length_classes(self.model.config)):
            keys = self._put(_compute_keys(self.model.graphdef, self.model.params, row.batch))
            self.work.prompt_tokens += row.num_tokens
            self.work.programs.add(("prompt", row.batch.tokens.shape[1], row.batch.tile))
            sources, ends = np.asarray(row.batch.sources[0]), np.asarray(row.batch.ends[0])
            for place, entries in row.members:
                index, last = members[place], int(sources[entries[-1]])
                prompt = prompts[index]
                path = np.flatnonzero(ends[: last + 1] > last)
                size = len(prompt.ids)
                made = Newcomer(
                    path=jnp.asarray(_pad(path, columns)),
                    token=jnp.int32(prompt.ids[-1]),
                    position=jnp.int32(size - 1),
                    budget=jnp.int32(self.budget(prompt)),
                    key=jnp.zeros(2, jnp.uint32),
                    prompt=jnp.asarray(_pad(prompt.ids, columns)),
                )
                for sample in (sample for i, sample in pairs if i == index):
                    key = key_of(self.seed, prompt.name, sample)
                    yield (index, sample), keys, self._put(made.replace(key=jnp.asarray(key)))


def _check_memory(needed: int, slots: int, columns: int) -> None:
    if needed > (free := free_bytes()):
        raise UsageError(
            f"{slots} slots of {columns:,} tokens take {needed / 1e9:,.1f} GB of a device's "
            f"memory, of which {free / 1e9:,.1f} are free",
            remedy="give a smaller max_new_tokens or max_length, or fewer slots",
        )


def on_one_device(model: Model) -> Model:
    """The model without a mesh; where it has one, the parameters are copied to its first device."""
    if model.mesh is None:
        return model
    params = jax.device_put(model.params, model.mesh.devices.flat[0])
    return replace(model, params=params, mesh=None)


def _to_request(ids: np.ndarray, row: int) -> Request:
    """All tokens but the last are to be computed; of a single one, itself, to be replaced."""
    ids = np.asarray(ids, np.int32)
    ids = ids if len(ids) > 1 else np.repeat(ids, 2)
    return Request(ids=ids, spans=((len(ids) - 1, len(ids)),), num_bytes=0, row=row)


def _pad(values: np.ndarray, columns: int) -> np.ndarray:
    return np.pad(values.astype(np.int32), (0, columns - len(values)), mode="edge")
