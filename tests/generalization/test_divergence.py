"""Compositional splits: divergences by definition, and what the search may and must do."""

from __future__ import annotations

import itertools

import numpy as np

from instructjax.generalization.divergence import (
    divergence,
    list_atoms_and_compounds,
    split_by_divergence,
    split_by_length,
)


def test_divergence_by_definition() -> None:
    p, q = np.array([1.0, 2.0, 1.0]), np.array([2.0, 1.0, 1.0])
    expected = 1 - sum((a / 4) ** 0.1 * (b / 4) ** 0.9 for a, b in zip(p, q, strict=True))
    assert abs(divergence(p, q, 0.1) - expected) < 1e-12
    assert divergence(p, p, 0.5) < 1e-12
    assert divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5) == 1.0


def test_search_raises_compound_divergence_and_keeps_atoms() -> None:
    verbs, ways = ("walk", "run", "look", "jump"), ("left", "right", "twice", "around")
    texts = [" ".join(four) for four in itertools.product(verbs, ways, verbs, ways)]
    atoms, compounds = list_atoms_and_compounds(texts)
    keys = np.arange(len(texts), dtype=np.uint64)
    found = split_by_divergence(atoms, compounds, keys, fraction=0.25, seed=0)
    assert found.test.sum() == 64
    assert found.atom_divergence <= max(0.02, found.start_atom_divergence) + 1e-9
    assert found.compound_divergence > 3 * found.start_compound_divergence
    # What it says of its result is what the result has.
    for things, alpha, told in (
        (atoms, 0.5, found.atom_divergence),
        (compounds, 0.1, found.compound_divergence),
    ):
        size = 1 + max(int(row.max()) for row in things)
        sides = [
            np.bincount(
                np.concatenate([r for r, t in zip(things, found.test, strict=True) if t == side]),
                minlength=size,
            )
            for side in (False, True)
        ]
        assert abs(divergence(sides[0].astype(float), sides[1].astype(float), alpha) - told) < 1e-9
    shares: list[float] = []
    again = split_by_divergence(
        atoms, compounds, keys, fraction=0.25, seed=0, on_progress=shares.append
    )
    assert shares == sorted(shares)
    assert 0 == shares[0] <= shares[-1] < 1
    assert (again.test == found.test).all()


def test_search_with_nothing_to_choose() -> None:
    one = split_by_divergence(
        [np.array([0])], [np.array([], int)], np.zeros(1, np.uint64), fraction=0.5, seed=0
    )
    assert one.test.tolist() == [False]


def test_length_split_has_longer_texts_on_the_unseen_side() -> None:
    texts = ["a " * n for n in (1, 2, 2, 3, 5, 8, 8, 9)]
    test, shortest = split_by_length(texts, fraction=0.4)
    assert test.tolist() == [False] * 5 + [True] * 3 and shortest == 8
    test, _ = split_by_length(["same length"] * 4, fraction=0.5)
    assert not test.any()
