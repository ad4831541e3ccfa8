"""`sample`: examples in, responses y ~ Pr(. | c, z) out, in one call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from pathlib import Path

from jax.sharding import Mesh

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.models.model import Model
from instructjax.prompts.options import Truncation
from instructjax.prompts.request import Request
from instructjax.sampling.engine import SLOTS, Sampler
from instructjax.sampling.result import Samples
from instructjax.sampling.rows import encode_prompt, make_prompt_encoder
from instructjax.sampling.rules import SamplingRules
from instructjax.sampling.stream import describe_sampling, sample_chunks
from instructjax.scoring.rows import list_examples
from instructjax.scoring.runs.chunks import make_chunks
from instructjax.scoring.runs.stream import Headway


def sample(
    model: Model,
    examples: Example | Iterable[Example],
    *,
    max_new_tokens: int = 256,
    temperature: int | float = 1.0,
    top_k: int = 0,
    top_p: int | float = 1.0,
    min_p: int | float = 0.0,
    repetition_penalty: int | float = 1.0,
    num_samples: int = 1,
    seed: int = 0,
    stop: str | Sequence[str] = (),
    stop_ids: Sequence[int] | None = None,
    layout: str | Path = "user",
    truncation: Truncation = "error",
    max_length: int | None = None,
    slots: int = SLOTS,
    mesh: Mesh | None = None,
    score: bool = True,
    progress: bool | None = None,
) -> Samples:
    """Responses y ~ Pr(. | c, z) to every example.

    Every draw is decided by the seed, the example's id ("row N" if it has none), the number of the
    sample, and the token's place: what else is asked for in the call, and in which order, does not
    matter.

    Args:
      model: from `load_model`.
      examples: one, or any iterable of them; their outputs are not looked at.
      max_new_tokens: at most, in each response; fewer where the model has no room.
      temperature, top_k, top_p, min_p, repetition_penalty: see `SamplingRules`; by default y is
        drawn from the model's own distribution. Temperature 0 is greedy.
      num_samples: responses to each example.
      seed: of the draws.
      stop: strings that end a response; the text stops before them.
      stop_ids: tokens that end it; by default all that the model ends a turn with.
      layout: where c and z go: "user", "system", "plain", "alpaca", "raw" or a .jinja file.
      truncation: of prompts that are too long: "error", "left" or "middle".
      max_length: tokens of prompt and response; by default all that the model takes.
      slots: sequences written at a time, on each device.
      mesh: whose devices write; by default that of the model. The text does not depend on it.
      score: the model's token log-probs come from scoring what was written: `score` gives the same.
        Without, they are the decoder's, whose sums are rounded differently: on SmolLM2-135M in
        float32 by 4e-6 nats in the root mean square, 2.7e-5 at most of 1,268 tokens.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an option out of range, or something that is no example.
      DataError, PromptError: an example cannot be encoded; they name it.

    For example, with the embedded model (which a first call downloads)::

        model = ij.load_model("smollm2-135m-instruct")
        ij.sample(model, ij.Example(instruction="Name a colour."), num_samples=4).text
    """
    rules = SamplingRules(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
    )
    limits = {
        "num_samples": check_count("num_samples", num_samples),
        "max_new_tokens": check_count("max_new_tokens", max_new_tokens),
    }
    sampler = Sampler(
        model,
        rules=rules,
        stop=stop,
        stop_ids=stop_ids,
        seed=seed,
        slots=slots,
        max_length=max_length,
        mesh=mesh,
    )
    encoder = make_prompt_encoder(
        model,
        max_new_tokens=max_new_tokens,
        layout=layout,
        truncation=truncation,
        max_length=max_length,
    )
    examples = list_examples(examples)
    total = len(examples) if isinstance(examples, list | tuple) else None

    def encode(example: Example, row: int) -> list[Request]:
        return [encode_prompt(encoder, example, row)]

    headway = Headway()
    with ScoringProgress(total, show=progress, verb="sampling") as bar:
        made = sample_chunks(
            sampler,
            make_chunks(examples, encode),
            **limits,
            score=score,
            headway=headway,
            on_progress=lambda: bar.update(headway.rows, sampler.work.new_tokens),
        )
        rows = tuple(row for chunk in made for row in chunk.rows)
    about = describe_sampling(sampler, encoder, **limits, score=score)
    return Samples(rows=rows, tokenizer=model.tokenizer, metadata=about)


def check_count(name: str, value: object) -> int:
    """Returns a whole number of at least 1, or raises a UsageError that names it."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{name} is {value!r}", remedy="give a whole number of at least 1")
    return int(value)
