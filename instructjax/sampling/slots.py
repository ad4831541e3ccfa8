"""Slots of sequences that are being written, and the compiled loop that writes them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, UInt32

from instructjax.models.config import DecoderConfig
from instructjax.models.decoding import DecodingParts, multiply_rows
from instructjax.models.kv_cache import KVCache, decode, make_cache
from instructjax.sampling.draw import RuleValues, draw, uniform_of
from instructjax.scoring.head import cap_logits

STEPS = 16  # at most so many tokens a slot before the host looks at them
AXIS = "data"


class Slots(struct.PyTreeNode):
    """What is known of each sequence that is being written.

    Attributes:
      cache: keys and values of all its tokens but the last.
      token: the last one, which has not been through the decoder yet.
      position: its depth in the sequence.
      count: how many tokens have been drawn.
      budget: how many may be.
      key: draws them.
      live: it is not finished.
      seen: tokens that it holds, for the repetition penalty; None without.
    """

    cache: KVCache
    token: Int[Array, " S"]
    position: Int[Array, " S"]
    count: Int[Array, " S"]
    budget: Int[Array, " S"]
    key: UInt32[Array, "S 2"]
    live: Bool[Array, " S"]
    seen: Bool[Array, "S V"] | None


class Written(NamedTuple):
    """Tokens of a chunk of steps; entries past `steps`, and of slots not live, mean nothing.

    Attributes:
      steps: how many were done, at least 1 and at most `STEPS`.
      token, log_prob, sampling_log_prob, margin: see `Drawn`.
      wrote: the slot was live in this step.
    """

    steps: Int[Array, ""]
    token: Int[Array, "R S"]
    log_prob: Float[Array, "R S"]
    sampling_log_prob: Float[Array, "R S"]
    margin: Float[Array, "R S"]
    wrote: Bool[Array, "R S"]


class Newcomer(struct.PyTreeNode):
    """A sequence to put into a slot: a prompt of which all but the last token were computed.

    Attributes:
      path: where its tokens stand in the row whose keys and values were computed, by depth.
      token, position: the prompt's last.
      budget: tokens that may be drawn.
      key: draws them.
      prompt: the tokens of the prompt, then the last of them again up to C.
    """

    path: Int[Array, " C"]
    token: Int[Array, ""]
    position: Int[Array, ""]
    budget: Int[Array, ""]
    key: UInt32[Array, " 2"]
    prompt: Int[Array, " C"]


def empty_slots(
    config: DecoderConfig, slots: int, columns: int, dtype: Any, *, penalty: bool, mesh: Mesh | None
) -> Slots:
    """No sequence in any of them, spread over the mesh's axis `data` if there is one."""
    # Arrays of their own: a program that is given one twice cannot take it over.
    made = Slots(
        cache=make_cache(config, slots, columns, dtype),
        token=jnp.zeros(slots, jnp.int32),
        position=jnp.zeros(slots, jnp.int32),
        count=jnp.zeros(slots, jnp.int32),
        budget=jnp.zeros(slots, jnp.int32),
        key=jnp.zeros((slots, 2), jnp.uint32),
        live=jnp.zeros(slots, bool),
        seen=jnp.zeros((slots, config.vocab_size), bool) if penalty else None,
    )
    return made if mesh is None else jax.device_put(made, NamedSharding(mesh, P(AXIS)))


@partial(jax.jit, static_argnames="mesh", donate_argnames="slots")
def admit(
    slots: Slots,
    keys: Float[Array, "L N K D"],
    values: Float[Array, "L N K D"],
    newcomer: Newcomer,
    slot: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> Slots:
    """Puts a sequence into a slot, in place."""

    def here(slots: Slots, keys, values, newcomer: Newcomer, slot) -> Slots:
        count = slots.token.shape[0]
        own = slot if mesh is None else slot - lax.axis_index(AXIS) * count
        mine, own = (own >= 0) & (own < count), jnp.clip(own, 0, count - 1)

        def put(old: Array, new: Array) -> Array:
            before = lax.dynamic_slice_in_dim(old, own, 1)
            new = jnp.where(mine, new.astype(old.dtype), before[0])
            return lax.dynamic_update_slice_in_dim(old, new[None], own, 0)

        cache = KVCache(
            keys=tuple(
                put(old, new[newcomer.path].transpose(1, 2, 0))
                for old, new in zip(slots.cache.keys, keys, strict=True)
            ),
            values=tuple(
                put(old, new[newcomer.path].transpose(1, 0, 2))
                for old, new in zip(slots.cache.values, values, strict=True)
            ),
        )
        seen = slots.seen
        if seen is not None:
            seen = put(seen, jnp.zeros(seen.shape[1], bool).at[newcomer.prompt].set(True))
        return Slots(
            cache=cache,
            token=put(slots.token, newcomer.token),
            position=put(slots.position, newcomer.position),
            count=put(slots.count, jnp.zeros_like(newcomer.token)),
            budget=put(slots.budget, newcomer.budget),
            key=put(slots.key, newcomer.key),
            live=put(slots.live, jnp.asarray(True)),
            seen=seen,
        )

    if mesh is None:
        return here(slots, keys, values, newcomer, slot)
    everywhere = (P(), P(), P(), P())
    return jax.shard_map(
        here, mesh=mesh, in_specs=(P(AXIS), *everywhere), out_specs=P(AXIS), check_vma=False
    )(slots, keys, values, newcomer, slot)


def decode_logits(
    parts: DecodingParts, cache: KVCache, tokens: Int[Array, " S"], positions: Int[Array, " S"]
) -> tuple[Float[Array, "S V"], KVCache]:
    """What the model says of the token after each of these, in float32; see `decode`."""
    hidden, cache = decode(parts, cache, tokens, positions)
    model = parts.merge_outside()
    logits = multiply_rows(model.output_table, hidden, jnp.float32).T
    return cap_logits(logits, model.config.logit_softcap), cache


@partial(jax.jit, static_argnames="mesh", donate_argnames="slots")
def write(
    parts: DecodingParts,
    slots: Slots,
    rules: RuleValues,
    stops: Bool[Array, " V"],
    steps: Int[Array, ""],
    enough: Int[Array, ""],
    *,
    mesh: Mesh | None = None,
) -> tuple[Slots, Written]:
    """Draws tokens for all live slots, in place.

    Args:
      parts: of the decoder.
      slots: the sequences.
      rules: how tokens are drawn.
      stops: tokens that end a sequence.
      steps: at most so many, up to `STEPS`.
      enough: it ends early when no more than so many slots are live.
    """

    def here(parts, slots: Slots, rules, stops, steps, enough):
        count = slots.token.shape[0]
        floats = jnp.zeros((STEPS, count), jnp.float32)
        ints = floats.astype(jnp.int32)
        written = Written(steps * 0, ints, floats, floats, floats, floats.astype(bool))

        def going(state):
            slots, written = state
            live = slots.live.sum()
            live = live if mesh is None else lax.psum(live, AXIS)
            return (written.steps < steps) & (live > enough)

        def step(state):
            slots, written = state
            logits, cache = decode_logits(parts, slots.cache, slots.token, slots.position)
            drawn = draw(logits, uniform_of(slots.key, slots.count), slots.seen, rules)
            live, at = slots.live, written.steps
            move = live.astype(jnp.int32)
            total = slots.count + move
            seen = slots.seen
            if seen is not None:
                for i in range(count):
                    one = jnp.ones((1, 1), bool)
                    seen = lax.dynamic_update_slice(seen, one, (i, drawn.token[i]))
            written = Written(
                at + 1,
                written.token.at[at].set(drawn.token),
                written.log_prob.at[at].set(drawn.log_prob),
                written.sampling_log_prob.at[at].set(drawn.sampling_log_prob),
                written.margin.at[at].set(drawn.margin),
                written.wrote.at[at].set(live),
            )
            return Slots(
                cache=cache,
                token=jnp.where(live, drawn.token, slots.token),
                position=slots.position + move,
                count=total,
                budget=slots.budget,
                key=slots.key,
                live=live & (total < slots.budget) & ~stops[drawn.token],
                seen=seen,
            ), written

        return lax.while_loop(going, step, (slots, written))

    operands = (parts, slots, rules, stops, steps, enough)
    if mesh is None:
        return here(*operands)
    columns = P(None, AXIS)
    spread = Written(P(), columns, columns, columns, columns, columns)  # type: ignore[arg-type]
    specs = (P(), P(AXIS), P(), P(), P(), P())
    return jax.shard_map(
        here, mesh=mesh, in_specs=specs, out_specs=(P(AXIS), spread), check_vma=False
    )(*operands)
