"""`evaluate`: what the responses of one model, or of several, are worth."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from instructjax.data.example import Example
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.evaluation.generate import GenerateOptions
from instructjax.evaluation.given import Texts, find_given
from instructjax.evaluation.metrics import Metric, find_metrics
from instructjax.evaluation.plan import Plan
from instructjax.evaluation.result import Evaluation
from instructjax.evaluation.stream import evaluate_chunks
from instructjax.evaluation.table import EVALUATION_SCHEMA
from instructjax.models.model import Model
from instructjax.prompts.options import Truncation
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache, open_cache
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run
from instructjax.scoring.ranking.options import Normalization
from instructjax.scoring.rows import list_examples
from instructjax.scoring.runs.chunks import Failure
from instructjax.scoring.runs.stream import Headway
from instructjax.scoring.tables.table import to_table


def evaluate(
    models: Model | Sequence[Model] | Mapping[str, Model],
    examples: Example | Iterable[Example],
    metrics: str | Metric | Callable[..., Any] | Iterable[Any] = ("log_prob",),
    *,
    predictions: Texts | Mapping[str, Texts] | None = None,
    max_new_tokens: int = 128,
    stop: str | Sequence[str] = (),
    normalization: Normalization = "sum",
    layout: str | Path = "user",
    include_eos: bool = True,
    truncation: Truncation = "error",
    max_length: int | None = None,
    cache: str | Path | ScoreCache | None = None,
    progress: bool | None = None,
) -> Evaluation:
    """P(c, z, y) of every example under every metric and model.

    - `log_prob`, `log_prob_per_token`: log Pr(y | c, z) of the reference, nats;
    - `rank_accuracy`: whether the right one of several candidates has the highest score;
    - `exact_match`, `f1`, `rouge_l`, `chrf`: of what the model writes, against the references;
    - `ifeval`: which verifiable constraints it holds, as `ifeval_prompt_strict`,
      `ifeval_prompt_loose`, `ifeval_instruction_strict` and `ifeval_instruction_loose`;
    - `module:function`, or a function: your own; see `load_metric`.

    The references of an example are its outputs, and the best counts; where `answer` says which of
    them is right, that one alone. A metric of text asks the model to write greedily, unless
    predictions are given. Constraints are in `Example.extra`, as IFEval has them. Where a metric of
    yours fails on an example, a warning says so, and the table has no value there.

    Args:
      models: one, several, or several by the names that the table is to have.
      examples: one, or any iterable of them.
      metrics: names, or functions; one or several.
      predictions: what the model wrote: a text an example, or a list of samples, whose mean counts,
        or what `sample` returned for these examples; for several models, by name.
      max_new_tokens: after so many tokens what is written is cut, and flagged.
      stop: a text, or several, before which what is written ends.
      normalization: of `rank_accuracy`: "sum", "per_token", "per_character" or "per_byte".
      layout, include_eos, truncation, max_length, cache: as in `score`.
      progress: show a bar if it takes more than 2 s; by default on a terminal or in a notebook.

    Raises:
      UsageError: an unknown metric or option, models of one name, predictions that are no texts
        or not as many as examples.
      DataError: an example cannot be used.
      PromptError: an example cannot be encoded faithfully.

    For example, with the embedded model (which a first call downloads)::

        model = ij.load_model("smollm2-135m-instruct")
        examples = [ij.Example(instruction="Add.", input="1 + 1", output=["2", "3"], answer="2")]
        ij.evaluate(model, examples, ["log_prob", "rank_accuracy"]).to_pandas()
    """
    named = name_models(models)
    generation = GenerateOptions(
        max_new_tokens=max_new_tokens,
        stop=stop,
        layout=str(layout),
        truncation=truncation,
        max_length=max_length,
    )
    plan = Plan(metrics=find_metrics(metrics), normalization=normalization, generation=generation)
    rows = list(list_examples(examples))
    given = find_given(predictions, named, rows)
    records: list[dict[str, Any]] = []
    metadata: dict[str, str] = {}
    for name, model in named.items():
        encoder = make_encoder(
            model,
            layout=layout,
            include_eos=include_eos,
            truncation=truncation,
            max_length=max_length,
        )
        headway, work = Headway(), Work()
        failures: dict[str, list[Failure]] = {}
        bar = ScoringProgress(len(rows), show=progress, verb="evaluating")
        with open_cache(cache, model) as found, bar:

            def tick(bar: Any = bar, headway: Headway = headway, work: Work = work) -> None:
                bar.update(headway.rows, work.useful)

            for chunk in evaluate_chunks(
                model,
                name,
                rows,
                plan,
                encoder=encoder,
                predictions=given.get(name),
                cache=found,
                headway=headway,
                work=work,
                on_progress=tick,
            ):
                for failure in (*chunk.rejects, *chunk.failures):
                    if isinstance(failure, Failure):
                        raise failure.error
                records += chunk.records
                for metric, failed in chunk.metric_failures.items():
                    failures.setdefault(metric, []).extend(failed)
        _warn(failures, len(rows))
        about = describe_run(model, encoder, ("cz",))
        metadata |= join_metadata(metadata, about, name)
    metadata |= plan.describe(generates=plan.reads_text and predictions is None)
    metadata["models"] = ",".join(named)
    return Evaluation(table=to_table(records, metadata, EVALUATION_SCHEMA))


def name_models(models: Any) -> dict[str, Model]:
    """Models by the names that the table has.

    Raises:
      UsageError: there is none, one is no model, or two have one name.
    """
    if isinstance(models, Model):
        return {models.name: models}
    if isinstance(models, Mapping):
        pairs = [(str(name), model) for name, model in models.items()]
    elif isinstance(models, Sequence) and not isinstance(models, str):
        pairs = [(getattr(model, "name", ""), model) for model in models]
    else:
        pairs = [("", models)]
    named: dict[str, Model] = {}
    for name, model in pairs:
        if not isinstance(model, Model):
            raise UsageError(
                f"a model is of type {type(model).__name__}", remedy="give what load_model returns"
            )
        named[name] = model
    if not pairs or len(named) < len(pairs):
        raise UsageError(
            f"models are called {', '.join(name for name, _ in pairs) or 'nothing'}",
            remedy="give one or several, those of one name as a dict of names and models",
        )
    return named


def join_metadata(
    metadata: Mapping[str, str], about: Mapping[str, str], name: str
) -> dict[str, str]:
    """What is to be added to the metadata of several models' table for one of them.

    What is the same for all stands once, the rest under `<model>/<name>`.

    >>> join_metadata({"jax": "1", "dtype": "float32"}, {"jax": "1", "dtype": "bfloat16"}, "b")
    {'b/dtype': 'bfloat16'}
    """
    return {
        (
            key
            if key not in metadata and key not in ("model", "model_fingerprint", "weights")
            else f"{name}/{key}"
        ): value
        for key, value in about.items()
        if metadata.get(key) != value
    }


def _warn(failures: Mapping[str, Sequence[Failure]], rows: int) -> None:
    for metric, failed in failures.items():
        warnings.warn(
            f"{metric} has no value for {len(failed):,} of {rows:,} examples; the first, "
            f"{failed[0].error}",
            stacklevel=3,
        )
