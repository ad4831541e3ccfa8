r"""log p of words: sums over their tokens, and the correction for spaces that begin words.

With tokenizers that write a space at the start of a word, the tokens of a word do not say that it
is over: the probability of that is in the next word's space. The plain sum over a word's tokens is
therefore the probability that a text goes on with the word *or with a longer one that begins so*,
and over all words it does not sum to 1. With B(x) the probability that after x a new word or the
end comes, the probability of the word is

\(p(w \mid x) = p(\mathrm{tokens}(w) \mid x) \, B(x w) / B(x)\)

(Pimentel and Meister 2024, "How to Compute the Probability of a Word"; Oh and Schuler 2024,
"Leading Whitespaces of Language Models' Subword Vocabulary Pose a Confound for Calculating Word
Probabilities").
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int32

from instructjax.data.example import Example
from instructjax.models.model import Model
from instructjax.prompts.options import Boundary, Truncation
from instructjax.prompts.request import Request
from instructjax.scoring.api import make_encoder
from instructjax.scoring.engine import score_requests
from instructjax.scoring.hidden import cut_windows, hidden_before_targets, output_table
from instructjax.scoring.rows import check_example, encode_row, list_examples, parse_contexts
from instructjax.scoring.vocabulary import log_mass, make_blocks
from instructjax.scoring.words.spans import (
    Ending,
    VocabularyKinds,
    describe_vocabulary,
    find_words,
    split_characters,
)

Span = tuple[int, int]
_log_mass = jax.jit(log_mass)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class WordScores:
    """log p of every word of one y.

    A word has the white space before it; the end-of-turn token is a word of its own.

    Attributes:
      id: the example's, or "row N" with N counted from 1.
      candidate: index of y among the example's outputs.
      words: as text.
      spans: (start, stop) of each word's tokens among `token_ids`.
      token_ids: y's tokens.
      log_prob: of each word, nats.
      corrected: whether the mass of word ends is where it belongs.
      status: "ok", or what a reader must know, joined by commas: the flags of
        `PromptEncoder.encode`, "not_finite" where the model gave no number, and "split_space"
        where a corrected word begins with white space of which its first token holds a part
        (bytes of U+3000, say): the correction knows whole white space only.
    """

    id: str
    candidate: int
    words: tuple[str, ...]
    spans: tuple[Span, ...]
    token_ids: Int32[np.ndarray, " n"]
    log_prob: Float64[np.ndarray, " W"]
    corrected: bool
    status: str

    @property
    def surprisal_nats(self) -> Float64[np.ndarray, " W"]:
        """-log p of each word."""
        return -self.log_prob

    @property
    def surprisal_bits(self) -> Float64[np.ndarray, " W"]:
        """-log2 p of each word."""
        return -self.log_prob / math.log(2)

    def __len__(self) -> int:
        return len(self.words)


def word_log_probs(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    correction: bool = False,
    context: str = "cz",
    layout: str | Path = "user",
    include_eos: bool = True,
    boundary: Boundary = "exact",
    truncation: Truncation = "error",
    max_length: int | None = None,
) -> list[WordScores]:
    """log p of every word of every y, words being what white space separates.

    The words of a y sum to log Pr(y | c, z), corrected or not, if y ends with its end-of-turn
    token. Without it (`include_eos=False`) the corrected words sum to the probability of y *and*
    that its last word is over.

    Args:
      model: from `load_model`.
      examples: one, or any iterable of them.
      correction: move the probability that a word is over from the next word to the word. The
        first word is taken to begin where y begins, with white space or without.
      context: what of c and z the prompt holds: "cz", "c", "z" or "none".
      layout, include_eos, boundary, truncation, max_length: as in `score`.

    Returns:
      One for each y: by example, within it by candidate.

    Raises:
      UsageError: an unknown option, or what are no examples.
      DataError: an example has no response.
      PromptError: an example cannot be encoded faithfully.

    For example::

        scores = ij.word_log_probs(model, examples, correction=True)[0]
        dict(zip(scores.words, scores.surprisal_bits))
    """
    (context,) = parse_contexts([context])
    encoder = make_encoder(
        model,
        layout=layout,
        include_eos=include_eos,
        boundary=boundary,
        truncation=truncation,
        max_length=max_length,
    )
    kinds = describe_vocabulary(model.tokenizer, model.config.vocab_size)
    listed = list_examples(examples)

    def encode() -> Iterator[tuple[str, Request]]:
        for row, given in enumerate(listed):
            example = check_example(given, row)
            for request in encode_row(model, encoder, example, row, (context,)):
                yield example.id or f"row {row + 1}", request

    scores = []
    for window in cut_windows(encode(), lambda pair: pair[1].num_tokens):
        requests = [request for _, request in window]
        log_probs = [one.token_log_probs for one in score_requests(model, requests)]
        masses = _boundary_masses(model, requests, kinds) if correction else [None] * len(window)
        for (name, request), tokens, mass in zip(window, log_probs, masses, strict=True):
            ids = request.target_ids
            texts = split_characters([kinds.pieces[i] for i in ids])
            found = find_words(texts, kinds.control[ids])
            sums = sum_words(tokens, [word.span for word in found])
            if mass is not None:
                after = [_mass_after(word.ending, mass[word.span[1]]) for word in found]
                sums = correct_words(sums, np.array(after))
            flags = list(request.flags)
            starts = ids[[word.span[0] for word in found[1:]]]
            if correction and not (kinds.starts_word | kinds.control)[starts].all():
                flags.append("split_space")
            if not np.isfinite(sums).all():
                flags.append("not_finite")
            scores.append(
                WordScores(
                    id=name,
                    candidate=request.candidate,
                    words=tuple(model.tokenizer.decode(ids[slice(*word.span)]) for word in found),
                    spans=tuple(word.span for word in found),
                    token_ids=ids,
                    log_prob=sums,
                    corrected=correction,
                    status=",".join(flags) or "ok",
                )
            )
    return scores


def sum_words(
    token_log_probs: Float[np.ndarray, " n"], spans: Sequence[Span]
) -> Float64[np.ndarray, " W"]:
    """Sum over the tokens of each span, nats, in float64.

    >>> sum_words(np.array([-1.0, -2.0, -0.5]), [(0, 2), (2, 3)])
    array([-3. , -0.5])
    """
    sums = [token_log_probs[start:stop].sum(dtype=np.float64) for start, stop in spans]
    return np.array(sums, np.float64)


def correct_words(
    log_prob: Float64[np.ndarray, " W"], log_mass_after: Float64[np.ndarray, " W"]
) -> Float64[np.ndarray, " W"]:
    r"""\(\log p(\mathrm{tokens}(w_i)) + \log B_i - \log B_{i-1}\), with \(\log B_0 = 0\); nats.

    Args:
      log_prob: sum over the tokens of each word.
      log_mass_after: \(\log B_i\), the log-probability that the next token is not one of word i;
        0 after the end of turn.

    >>> correct_words(np.array([-1.0, -2.0]), np.array([-0.25, 0.0]))
    array([-1.25, -1.75])
    """
    return log_prob + log_mass_after - np.concatenate([[0.0], log_mass_after[:-1]])


def _boundary_masses(
    model: Model, requests: Sequence[Request], kinds: VocabularyKinds
) -> list[Float[np.ndarray, "_ 2"]]:
    """Before each token of each y and after its last: log-probabilities that white space begins,
    and that a control token comes.
    """
    # With one more token to predict, whatever it is, there is a state after the last one too.
    longer = [
        replace(
            request,
            ids=np.append(request.ids, request.ids[-1]),
            spans=(*request.spans[:-1], (request.spans[-1][0], request.spans[-1][1] + 1)),
        )
        for request in requests
    ]
    states = np.concatenate(hidden_before_targets(model, longer))
    table, softcap = output_table(model), model.config.logit_softcap
    sets = jnp.asarray(np.stack([kinds.starts_word, kinds.control]))
    found = [
        jax.device_get(_log_mass(hidden, table, sets, softcap))[:count]
        for count, (hidden,) in make_blocks(states)
    ]
    stops = np.cumsum([request.num_tokens for request in longer])[:-1]
    return np.split(np.concatenate(found), stops)


def _mass_after(ending: Ending, log_masses: Float[np.ndarray, " S"]) -> float:
    """log B after a word: of the tokens that would not be part of it."""
    if ending == "over":
        return 0.0
    starts_word, control = (float(x) for x in log_masses)
    return control if ending == "blank" else float(np.logaddexp(starts_word, control))
