r"""Compositional splits: known atoms in new compounds, or longer texts than any trained on.

Keysers et al. 2020 (Measuring Compositional Generalization, ICLR): with frequency distributions F
of atoms and of compounds over the train and the test set, and the Chernoff coefficient
\(C_\alpha(P \| Q) = \sum_k p_k^\alpha q_k^{1-\alpha}\), the divergences are
\(D_A = 1 - C_{0.5}(F^A_{train} \| F^A_{test})\) and
\(D_C = 1 - C_{0.1}(F^C_{train} \| F^C_{test})\). A split of maximum compound divergence (MCD) has
D_C as large as can be with D_A at most 0.02.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int, UInt64

from instructjax.generalization.identity import mix
from instructjax.generalization.word_hashes import fold_text

ATOM_ALPHA, COMPOUND_ALPHA = 0.5, 0.1
MAX_ATOM_DIVERGENCE = 0.02


@dataclass(frozen=True, kw_only=True)
class DivergentSplit:
    """A split by compounds.

    Attributes:
      test: which texts are unseen.
      atom_divergence, compound_divergence: of the split, 0 to 1.
      start_atom_divergence, start_compound_divergence: of the random split that it began with.
    """

    test: Bool[np.ndarray, " N"]
    atom_divergence: float
    compound_divergence: float
    start_atom_divergence: float
    start_compound_divergence: float


def divergence(
    train: Float64[np.ndarray, " K"], test: Float64[np.ndarray, " K"], alpha: float
) -> float:
    """1 - C_alpha of two vectors of counts; 1 where one of them is empty.

    >>> round(divergence(np.array([1.0, 1.0]), np.array([1.0, 0.0]), 0.5), 4)
    0.2929
    """
    if not train.sum() or not test.sum():
        return 1.0
    p, q = train / train.sum(), test / test.sum()
    return max(0.0, 1 - float((p**alpha * q ** (1 - alpha)).sum()))


def split_by_divergence(
    atoms: Sequence[Int[np.ndarray, " _"]],
    compounds: Sequence[Int[np.ndarray, " _"]],
    keys: UInt64[np.ndarray, " N"],
    *,
    fraction: float,
    seed: int,
    sweeps: int = 20,
    on_progress: Callable[[float], None] = lambda share: None,
) -> DivergentSplit:
    """Searches a split with large compound divergence and atom divergence of at most 0.02.

    A local search, as in the paper: it starts with a random split and exchanges a train and a test
    text whenever that raises D_C and does not raise D_A above 0.02 (or above what it is). What is
    found is a large divergence, not the largest. Texts are tried in an order that depends on keys
    and seed alone. Takes time proportional to sweeps x all compounds.

    Args:
      atoms, compounds: numbers from 0 of the atoms and compounds of each text, with repetition.
      keys: of the texts.
      fraction: of the texts that become unseen.
      seed: of the order.
      sweeps: how often all texts are tried.
      on_progress: is told the share of them that is done; fewer may do.
    """
    order = np.argsort(mix(keys, seed), kind="stable")
    size = int(np.clip(round(fraction * len(order)), min(1, len(order)), max(len(order) - 1, 0)))
    test = np.zeros(len(order), bool)
    test[order[:size]] = True
    tables = [_Counts(atoms, test, ATOM_ALPHA), _Counts(compounds, test, COMPOUND_ALPHA)]
    start = [table.divergence for table in tables]
    rng = np.random.Generator(np.random.PCG64(seed))
    for sweep in range(sweeps if 0 < size < len(order) else 0):
        moved = False
        inside, outside = order[test[order]], order[~test[order]]
        partners = rng.permutation(np.resize(inside, len(outside))).tolist()
        for place, (a, b) in enumerate(zip(partners, outside.tolist(), strict=True)):
            if place % 1024 == 0:
                on_progress((sweep + place / len(outside)) / sweeps)
            if not test[a] or test[b]:
                continue
            if tables[1].try_exchange(a, b) <= tables[1].divergence + 1e-12:
                continue
            if tables[0].try_exchange(a, b) <= max(MAX_ATOM_DIVERGENCE, tables[0].divergence):
                test[a], test[b], moved = False, True, True
                for table in tables:
                    table.exchange(a, b)
        if not moved:
            break
    return DivergentSplit(
        test=test,
        atom_divergence=tables[0].exact_divergence(),
        compound_divergence=tables[1].exact_divergence(),
        start_atom_divergence=start[0],
        start_compound_divergence=start[1],
    )


class _Counts:
    """Counts of things in train and test, with the divergence kept up to date by differences."""

    def __init__(
        self, things: Sequence[Int[np.ndarray, " _"]], test: Bool[np.ndarray, " N"], alpha: float
    ) -> None:
        self.alpha = alpha
        self.of = [np.unique(row, return_counts=True) for row in things]
        size = 1 + max((int(names[-1]) for names, _ in self.of if len(names)), default=0)
        self.sides = np.zeros((2, size))
        for (names, counts), held in zip(self.of, test, strict=True):
            self.sides[int(held), names] += counts
        self.totals = self.sides.sum(1)
        self.sum = float(self._terms(self.sides).sum())

    def _terms(self, sides: Float64[np.ndarray, "2 k"]) -> Float64[np.ndarray, " k"]:
        return sides[0] ** self.alpha * sides[1] ** (1 - self.alpha)

    def _divergence(self, terms: float, totals: Float64[np.ndarray, " 2"]) -> float:
        if not totals.all():
            return 1.0
        return 1 - terms / float(totals[0] ** self.alpha * totals[1] ** (1 - self.alpha))

    @property
    def divergence(self) -> float:
        return max(0.0, self._divergence(self.sum, self.totals))

    def exact_divergence(self) -> float:
        return divergence(self.sides[0], self.sides[1], self.alpha)

    def _change(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray]:
        """What b's things and a's leave and enter: names, and what is added to the test side."""
        names = np.concatenate([self.of[a][0], self.of[b][0]])
        added = np.concatenate([-self.of[a][1], self.of[b][1]])
        names, place = np.unique(names, return_inverse=True)
        return names, np.bincount(place, weights=added, minlength=len(names))

    def _after(self, a: int, b: int) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
        names, added = self._change(a, b)
        before = self.sides[:, names]
        after = before + np.stack([-added, added])
        terms = self.sum + float((self._terms(after) - self._terms(before)).sum())
        return names, after, terms, self.totals + np.array([-added.sum(), added.sum()])

    def try_exchange(self, a: int, b: int) -> float:
        """The divergence if a leaves the test set for b."""
        _, _, terms, totals = self._after(a, b)
        return self._divergence(terms, totals)

    def exchange(self, a: int, b: int) -> None:
        names, after, self.sum, self.totals = self._after(a, b)
        self.sides[:, names] = after


def list_atoms_and_compounds(
    texts: Sequence[str],
) -> tuple[list[Int[np.ndarray, " _"]], list[Int[np.ndarray, " _"]]]:
    """Words as atoms and pairs of neighbouring words as compounds, numbered.

    Words are a stand-in for the rules by which a text was made, which are not known of natural
    text; where they are, give them to `split_by_divergence`.

    >>> atoms, compounds = list_atoms_and_compounds(["walk twice", "look twice"])
    >>> [a.tolist() for a in atoms], [c.tolist() for c in compounds]
    ([[0, 1], [2, 1]], [[0], [1]])
    """
    words: dict[str, int] = {}
    pairs: dict[tuple[int, int], int] = {}
    atoms, compounds = [], []
    for text in texts:
        row = [words.setdefault(word, len(words)) for word in fold_text(text).split()]
        atoms.append(np.array(row, int))
        two = zip(row[:-1], row[1:], strict=True)
        compounds.append(np.array([pairs.setdefault(pair, len(pairs)) for pair in two], int))
    return atoms, compounds


def split_by_length(texts: Sequence[str], *, fraction: float) -> tuple[Bool[np.ndarray, " N"], int]:
    """Marks the texts with most words (Lake and Baroni 2018's length split of SCAN).

    Texts of equal length have one fate: as many lengths are unseen as make up the fraction, and at
    least one length is if there are two.

    Returns:
      Which texts are unseen, none where all are equally long, and the words that the shortest of
      them has, or would have.

    >>> test, shortest = split_by_length(["a", "a b", "a b c"], fraction=0.3)
    >>> test.tolist(), shortest
    ([False, False, True], 3)
    """
    lengths = np.array([len(fold_text(text).split()) for text in texts], int)
    per_length = Counter(lengths.tolist())
    marked, shortest = 0, int(lengths.max(initial=0)) + 1
    for length in sorted(per_length, reverse=True)[: max(len(per_length) - 1, 0)]:
        if marked and marked + per_length[length] > fraction * len(texts):
            break
        marked, shortest = marked + per_length[length], length
    return lengths >= shortest, shortest
