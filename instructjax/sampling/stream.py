"""Examples in, responses out: a stream in chunks, which depend on the rows alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass

from instructjax.data.rejects import Reject
from instructjax.prompts.encode import PromptEncoder
from instructjax.sampling.engine import Sampler
from instructjax.sampling.rescore import rescore
from instructjax.sampling.rows import SampledRow, name_response, to_prompt
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.runs.chunks import Chunk, Failure
from instructjax.scoring.runs.stream import Headway

SAMPLE_CHUNK_ROWS = 64  # of the input: what a stopped run may have to do again


@dataclass(frozen=True, kw_only=True, eq=False)
class SampledChunk:
    """Rows `first` to `stop` of the input: their responses, and those that have none.

    Attributes:
      first, stop: indices of the first row, and after the last.
      rows: by example, within it by sample.
      failures: the examples that have none, in order.
    """

    first: int
    stop: int
    rows: list[SampledRow]
    failures: list[Reject | Failure]


def sample_chunks(
    sampler: Sampler,
    chunks: Iterable[Chunk],
    *,
    num_samples: int,
    max_new_tokens: int,
    score: bool = True,
    headway: Headway | None = None,
    on_progress: Callable[[], None] | None = None,
) -> Generator[SampledChunk, None, None]:
    """Responses to chunks of encoded examples, one chunk after the other.

    Args:
      sampler: writes.
      chunks: of `make_chunks` with `encode_prompt`.
      num_samples, max_new_tokens: of each example.
      score: the model's log-probs are those of scoring; see `rescore`. Else the decoder's.
      headway: says how far the run is, if given.
      on_progress: called now and then meanwhile.
    """
    headway = Headway() if headway is None else headway
    start = time.perf_counter()
    for chunk in chunks:
        rows = _sample_chunk(sampler, chunk, num_samples, max_new_tokens, score, on_progress)
        headway.rows += chunk.stop - chunk.first
        headway.seconds = time.perf_counter() - start
        if on_progress is not None:
            on_progress()
        yield SampledChunk(first=chunk.first, stop=chunk.stop, rows=rows, failures=chunk.failures)


def _sample_chunk(
    sampler: Sampler,
    chunk: Chunk,
    num_samples: int,
    max_new_tokens: int,
    score: bool,
    on_progress: Callable[[], None] | None,
) -> list[SampledRow]:
    limits = {"num_samples": num_samples, "max_new_tokens": max_new_tokens}
    prompts = [to_prompt(row.example, row.requests[0], **limits) for row in chunk.rows]

    def tick(_: int) -> None:
        if on_progress is not None:
            on_progress()

    made = sorted(sampler.sample(prompts, on_tokens=tick), key=lambda x: (x.prompt, x.sample))
    made = rescore(sampler.model, prompts, made) if score else made
    answered = ((chunk.rows[sampled.prompt], sampled) for sampled in made)
    return [name_response(row.example, row.requests[0], sampled) for row, sampled in answered]


def describe_sampling(
    sampler: Sampler,
    encoder: PromptEncoder,
    *,
    num_samples: int,
    max_new_tokens: int,
    score: bool,
) -> Mapping[str, str]:
    """Model, prompt rules, arithmetic, versions and the rules of the draws, as text by name."""
    about = describe_run(sampler.model, encoder, ("cz",))
    # Not of a run that writes responses: nothing is scored, and every stop token ends one.
    for name in ("include_eos", "eos", "turns", "boundary", "contexts"):
        about.pop(name, None)
    return {
        **about,
        **sampler.describe(),
        "num_samples": str(num_samples),
        "max_new_tokens": str(max_new_tokens),
        "log_probs": "score" if score else "decoder",
    }
