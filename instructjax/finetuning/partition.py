"""Parameters by the patterns of their names."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Sequence

import jax
from flax import nnx

from instructjax.errors import UsageError


@functools.cache
def name_param(path: tuple) -> str:
    """The name of a parameter from its path in a tree: "layers.attention.q.kernel"."""
    keys = [key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return jax.tree_util.keystr(tuple(keys), simple=True, separator=".")


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Does a parameter's name match one of the patterns, in the manner of a shell.

    >>> matches("layers.attention.q.kernel", ["*.q.*"]), matches("embed.embedding", ["layers.*"])
    (True, False)
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def split_params(params: nnx.State, trainable: Sequence[str]) -> tuple[nnx.State, nnx.State]:
    """(those that are trained, the others), by patterns of names.

    Raises:
      UsageError: a pattern that no parameter matches.
    """
    names = [name_param(path) for path, _ in jax.tree.leaves_with_path(params)]
    for pattern in trainable:
        if not any(matches(name, [pattern]) for name in names):
            raise UsageError(
                f"no parameter is called {pattern!r}", remedy=f"the model has {', '.join(names)}"
            )
    chosen, others = nnx.split_state(
        params, lambda path, _: matches(".".join(map(str, path)), trainable), ...
    )
    return chosen, others
