"""What c and z each contribute to log Pr(y | c, z), from scores in four contexts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int

from instructjax.generalization.attribution import conditional_attribution
from instructjax.generalization.cluster_se import multiway_cluster_se, t_interval

CONTEXTS = ("cz", "c", "z", "none")
# Made once, so that tables with as many responses need no compilation.
_cluster = jax.jit(jax.vmap(multiway_cluster_se, in_axes=(0, None)))
_PARTS = {
    "instruction_given_input": ("instruction, given the input", "log Pr(y|c,z) − log Pr(y|z)"),
    "input_given_instruction": ("input, given the instruction", "log Pr(y|c,z) − log Pr(y|c)"),
    "interaction": (
        "only in combination",
        "log Pr(y|c,z) − log Pr(y|c) − log Pr(y|z) + log Pr(y)",
    ),
    "shapley_instruction": ("instruction, its fair share", "Shapley value of c"),
    "shapley_input": ("input, its fair share", "Shapley value of z"),
    "total": ("both together", "log Pr(y|c,z) − log Pr(y)"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Response:
    """One y with its tokens' log-probabilities in four contexts.

    Attributes:
      id, candidate: of the row.
      token_ids: of y.
      log_probs: nats, a row a context in the order of `CONTEXTS`.
    """

    id: str
    candidate: int
    token_ids: Int[np.ndarray, " T"]
    log_probs: Float64[np.ndarray, "4 T"]

    @property
    def layers(self) -> Float64[np.ndarray, "4 T"]:
        """Token by token, nats: log Pr(y|c,z); what c adds to z; what z adds to c; interaction."""
        cz, c, z, none = self.log_probs
        return np.stack([cz, cz - z, cz - c, cz - c - z + none])


@dataclass(frozen=True, kw_only=True)
class Contribution:
    """A mean over responses, nats a response.

    Attributes:
      name: what it is, for a person.
      formula: in the contexts' log-probabilities.
      mean: over the responses.
      half_width: of its 95% interval, clustered by all that responses share.
      per_token: the mean a token.
    """

    name: str
    formula: str
    mean: float
    half_width: float
    per_token: float


def find_responses(table: pa.Table) -> list[Response]:
    """The responses of a score table that have all four contexts."""
    wanted = ("id", "candidate", "context", "token_ids", "token_log_probs", "status")
    found: dict[tuple[str, int], dict[str, dict]] = {}
    for row in table.select(wanted).to_pylist():
        if row["status"] == "ok" or row["token_ids"]:
            found.setdefault((row["id"], row["candidate"]), {})[row["context"]] = row
    responses = []
    for (id, candidate), rows in found.items():
        if set(CONTEXTS) - set(rows):
            continue
        ids = [rows[context]["token_ids"] for context in CONTEXTS]
        # Other ids in another context are another y; a difference token by token would be none.
        if any(other != ids[0] for other in ids) or not ids[0]:
            continue
        log_probs = np.array([rows[c]["token_log_probs"] for c in CONTEXTS], np.float64)
        if np.isfinite(log_probs).all():
            responses.append(
                Response(
                    id=id, candidate=candidate, token_ids=np.array(ids[0]), log_probs=log_probs
                )
            )
    return responses


def summarize_contributions(
    responses: Sequence[Response], texts_of: Callable[[str], tuple[str, ...]]
) -> list[Contribution]:
    """Means of what `conditional_attribution` finds of each response.

    Args:
      responses: in four contexts, one or more.
      texts_of: of a row's id what other responses may share: its instruction and its input, and
        its task if there are tasks. Where all share one (every input is empty), the intervals are
        about that one.
    """
    totals = np.array([response.log_probs.sum(1) for response in responses])
    tokens = sum(len(response.token_ids) for response in responses)
    columns = zip(*(texts_of(response.id) for response in responses), strict=True)
    ways = [np.unique(column, return_inverse=True)[1] for column in columns]
    ways = [way for way in ways if way.any()] or [np.zeros(len(responses), int)]
    with jax.enable_x64(True):
        parts = conditional_attribution(*map(jnp.asarray, totals.T))
        values = np.stack([getattr(parts, field) for field in _PARTS])
        means = values.mean(1)
        errors = _cluster((values - means[:, None]) / len(responses), ways)
        low, high = map(np.asarray, t_interval(means, *errors))
    found = []
    for (name, formula), mean, half in zip(_PARTS.values(), means, (high - low) / 2, strict=True):
        found.append(
            Contribution(
                name=name,
                formula=formula,
                mean=float(mean),
                half_width=float(half) if math.isfinite(half) else math.inf,
                per_token=float(mean) * len(responses) / tokens,
            )
        )
    return found


def choose_shown(
    responses: Sequence[Response],
    texts_of: Callable[[str], tuple[str, ...]],
    limit: int = 8,
) -> list[Response]:
    """Some to look at: those to which the instruction adds most, and least, a token.

    Of the longer half, since a word and its end show little; and of different instructions where
    there are enough, else of different inputs, so that each shows something else.

    Args:
      responses: to choose from.
      texts_of: the instruction and the input of a row's id.
      limit: how many.

    Returns:
      In the order of what the instruction adds, most first.
    """
    usual = np.median([len(r.token_ids) for r in responses])
    longer = [r for r in responses if len(r.token_ids) >= usual]
    by = 0 if len({texts_of(r.id)[0] for r in longer}) >= limit else 1
    ordered = sorted(longer, key=lambda r: -r.layers[1].mean())
    most: dict[str, Response] = {}
    least: dict[str, Response] = {}
    for chosen, among, number in (
        (most, ordered, limit - limit // 2),
        (least, ordered[::-1], limit // 2),
    ):
        for response in among:
            name = texts_of(response.id)[by]
            if len(chosen) < number and name not in most:
                chosen.setdefault(name, response)
    return [*most.values(), *reversed(least.values())]
