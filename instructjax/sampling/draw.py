"""From logits to one token a slot, and its log-probability under the model and as it was drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt32

from instructjax.sampling.rules import SamplingRules

BLOCK = 256  # of the vocabulary, for sums


class RuleValues(struct.PyTreeNode):
    """`SamplingRules` for a compiled program: the numbers are arguments of it, but for which of
    the rules are in force, which is part of it.
    """

    repetition_penalty: Float[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    min_p: Float[Array, ""]
    in_force: tuple[str, ...] = struct.field(pytree_node=False)


def to_values(rules: SamplingRules) -> RuleValues:
    """The rules as arguments of a program.

    >>> to_values(SamplingRules(top_p=0.9)).in_force
    ('top_p',)
    """
    kept = {
        "repetition_penalty": rules.repetition_penalty != 1,
        "greedy": rules.greedy,
        "top_k": rules.top_k > 0,
        "top_p": rules.top_p < 1,
        "min_p": rules.min_p > 0,
    }
    drawn = not rules.greedy
    in_force = (
        n for n, on in kept.items() if on and (drawn or n in ("repetition_penalty", "greedy"))
    )
    return RuleValues(
        repetition_penalty=jnp.float32(rules.repetition_penalty),
        temperature=jnp.float32(rules.temperature or 1),
        top_k=jnp.int32(min(rules.top_k, jnp.iinfo(jnp.int32).max)),
        # Less is 0 in float32, and would keep nothing.
        top_p=jnp.float32(max(rules.top_p, float(jnp.finfo(jnp.float32).tiny))),
        min_p=jnp.float32(rules.min_p),
        in_force=tuple(in_force),
    )


class Drawn(NamedTuple):
    """One token a slot.

    Attributes:
      token: its id.
      log_prob: under the model, in nats: no rule applied.
      sampling_log_prob: under the distribution that it was drawn from; 0 if nothing was left to
        chance.
      margin: how far from another choice it was: in logits if nothing was left to chance, else in
        probability. Rounding cannot change the choice where it is well above rounding, unless
        top-k, top-p or min-p cut off at a token as likely as the last kept.
    """

    token: Int[Array, " S"]
    log_prob: Float[Array, " S"]
    sampling_log_prob: Float[Array, " S"]
    margin: Float[Array, " S"]


def draw(
    logits: Float[Array, "S V"],
    uniform: Float[Array, " S"],
    seen: Bool[Array, "S V"] | None,
    rules: RuleValues,
) -> Drawn:
    """Draws a token a slot by inversion: the first whose cumulative probability exceeds `uniform`.

    Args:
      logits: float32, of the model.
      uniform: in [0, 1).
      seen: tokens that the repetition penalty is for; None where it is not in force.
      rules: what is done to the logits.
    """
    processed = apply_rules(logits, seen, rules)
    if "greedy" in rules.in_force:
        token = jnp.argmax(processed, axis=-1)
        others = jnp.where(jnp.arange(processed.shape[-1]) == token[:, None], -jnp.inf, processed)
        margin = processed.max(-1) - others.max(-1)
        sampling = jnp.zeros_like(uniform)
    else:
        token, margin = invert(jax.nn.softmax(processed, axis=-1), uniform)
        sampling = _log_prob(processed, token)
    return Drawn(token.astype(jnp.int32), _log_prob(logits, token), sampling, margin)


def _log_prob(logits: Float[Array, "S V"], token: Int[Array, " S"]) -> Float[Array, " S"]:
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def apply_rules(
    logits: Float[Array, "S V"], seen: Bool[Array, "S V"] | None, rules: RuleValues
) -> Float[Array, "S V"]:
    """Logits after the rules, -inf for tokens that are not drawn from; see `SamplingRules`.

    >>> rules = to_values(SamplingRules(top_k=2))
    >>> apply_rules(jnp.array([[1.0, 3.0, 2.0]]), None, rules).tolist()
    [[-inf, 3.0, 2.0]]
    """
    x = logits
    if "repetition_penalty" in rules.in_force:
        assert seen is not None
        penalty = rules.repetition_penalty
        x = jnp.where(seen, jnp.where(x < 0, x * penalty, x / penalty), x)
    if "greedy" in rules.in_force:
        return x
    x = x / rules.temperature
    if "top_k" in rules.in_force:
        k = jnp.minimum(rules.top_k, x.shape[-1])
        x = _keep(x, lambda above: above.sum(-1, dtype=jnp.int32) < k)
    if "top_p" in rules.in_force:
        p = jax.nn.softmax(x, axis=-1)
        x = _keep(x, lambda above: jnp.where(above, p, 0).sum(-1) < rules.top_p)
    if "min_p" in rules.in_force:
        top = x.max(-1, keepdims=True)
        x = jnp.where(x - top < jnp.log(rules.min_p), -jnp.inf, x)
    return x


def _keep(
    x: Float[Array, "S V"], few_enough: Callable[[Bool[Array, "S V"]], Bool[Array, " S"]]
) -> Float[Array, "S V"]:
    """Keeps tokens of which those likelier are few enough, by bisection and without a sort.

    The bits of floats, read as whole numbers, are in the order of the floats, so 32 halvings find
    the lowest that may stay exactly.
    """
    bits = _ordered_bits(x)

    def halve(_, bounds):
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # no overflow
        enough = few_enough(bits > middle[:, None])
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    low, _ = lax.fori_loop(0, 32, halve, (bits.min(-1), bits.max(-1)))
    return jnp.where(bits < low[:, None], -jnp.inf, x)


def _ordered_bits(x: Float[Array, "S V"]) -> Int[Array, "S V"]:
    bits = lax.bitcast_convert_type(x + 0.0, jnp.int32)  # one zero only
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def invert(
    p: Float[Array, "S V"], uniform: Float[Array, " S"]
) -> tuple[Int[Array, " S"], Float[Array, " S"]]:
    """The first token whose cumulative probability exceeds `uniform` times the sum.

    The second result is how far that is from the token's bounds.

    A token of probability 0 is never drawn, whatever rounding does. Sums run in two levels, so
    that each is of few numbers.

    >>> p = jnp.array([[0.0, 0.5, 0.0, 0.5]] * 3)
    >>> invert(p, jnp.array([0.0, 0.25, 0.5]))[0].tolist()
    [1, 1, 3]
    """
    slots, vocab = p.shape
    p = jnp.pad(p, ((0, 0), (0, -vocab % BLOCK))).reshape(slots, -1, BLOCK)
    blocks = jnp.cumsum(p.sum(-1), axis=-1)
    block, rest = _first_above(blocks, uniform * blocks[:, -1])
    inside = jnp.cumsum(jnp.take_along_axis(p, block[:, None, None], axis=1)[:, 0], axis=-1)
    index, above = _first_above(inside, rest)
    width = jnp.take_along_axis(p[jnp.arange(slots), block], index[:, None], axis=1)[:, 0]
    return block * BLOCK + index, jnp.minimum(above, width - above)


def _first_above(
    sums: Float[Array, "S n"], target: Float[Array, " S"]
) -> tuple[Int[Array, " S"], Float[Array, " S"]]:
    """The first sum above the target, and how far the target is above the sum before it."""
    target = jnp.minimum(target, jnp.nextafter(sums[:, -1], jnp.zeros_like(target)))
    index = jnp.argmax(sums > target[:, None], axis=-1)
    before = jnp.take_along_axis(sums, jnp.maximum(index - 1, 0)[:, None], axis=-1)[:, 0]
    return index, target - jnp.where(index > 0, before, 0)


def uniform_of(key: UInt32[Array, "S 2"], count: Int[Array, " S"]) -> Float[Array, " S"]:
    """The number in [0, 1) that draws token `count` of the sequence with this key."""

    def one(data, n):
        key = jax.random.wrap_key_data(data, impl="threefry2x32")
        return jax.random.uniform(jax.random.fold_in(key, n))

    return jax.vmap(one)(key, count)
