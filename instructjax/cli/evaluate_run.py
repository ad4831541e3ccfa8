"""`instructjax evaluate`: from a data file and models to one evaluation table."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import cached_property

import jax

from instructjax.cli.evaluate import Evaluate
from instructjax.cli.evaluate_names import name_files, name_specs
from instructjax.cli.evaluate_parts import (
    STRIDE,
    describe_chunk,
    describe_end,
    find_first_failure,
    list_reasons,
    read_notes,
    say_again,
    take_back,
)
from instructjax.cli.evaluate_summary import show_evaluation
from instructjax.cli.messages import escape_controls, say_error
from instructjax.cli.row_count import estimate_rows
from instructjax.cli.score_checks import check_all, check_apart
from instructjax.cli.table_run import Rows
from instructjax.data import Example, Reject, RejectsFile, read_examples
from instructjax.data.fields import parse_fields
from instructjax.data.files import find_files
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.evaluation.api import join_metadata
from instructjax.evaluation.generate import GenerateOptions
from instructjax.evaluation.metrics import find_metrics
from instructjax.evaluation.plan import Plan, check_row, encode_example
from instructjax.evaluation.predictions import (
    Predictions,
    find_strangers,
    read_predictions,
    refuse_twins,
)
from instructjax.evaluation.stream import evaluate_chunks
from instructjax.evaluation.table import EVALUATION_SCHEMA
from instructjax.evaluation.written import Written
from instructjax.models import Model, load_model
from instructjax.prompts import PromptEncoder, PromptOptions
from instructjax.scoring.api import make_encoder
from instructjax.scoring.cache import ScoreCache
from instructjax.scoring.engine import Work
from instructjax.scoring.metadata import describe_run, installed_version
from instructjax.scoring.runs.folder import is_finished
from instructjax.scoring.runs.manifest import describe_files, digest_file
from instructjax.scoring.runs.parts import Parts, open_parts
from instructjax.scoring.runs.stream import Headway
from instructjax.scoring.tables.files import check_target
from instructjax.sharding import choose_mesh

DEFAULT_MODEL = "smollm2-135m-instruct"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One call of the verb, checked.

    Attributes:
      specs: of models, by the names that the table has.
      plan: what is measured.
      fields: column names by the contract's names.
      predictions: what models wrote, by their names; empty where they write now.
    """

    options: Evaluate
    specs: Mapping[str, str]
    plan: Plan
    fields: Mapping[str, str]
    predictions: Mapping[str, Predictions]

    @property
    def needs_models(self) -> bool:
        """Whether a model must be loaded."""
        return self.plan.reads_scores or (self.plan.reads_text and not self.predictions)

    @cached_property
    def sources(self) -> dict[str, str]:
        """SHA-256 of the files that the user's metrics are in, by the metrics' names."""
        metrics = self.plan.metrics
        return {x.name: digest_file(x.source) for x in metrics if x.source is not None}

    def read_rows(self, seen: set[str] | None = None) -> Rows:
        """The rows of the data, from the first; where there are predictions, `seen` gets ids."""
        rows: Iterator[Example | Reject] = read_examples(
            self.options.data,
            format=self.options.format,
            fields=self.fields,
            needs_output=False,
            keep_extra=True,
        )
        return refuse_twins(rows, seen) if self.predictions else rows

    def describe(self) -> dict[str, str]:
        """What the table is of, as far as it is known before models are loaded."""
        prompt = self.options.prompt_options()
        return {
            "instructjax": installed_version(),
            "jax": jax.__version__,
            "models": ",".join(self.specs),
            **self.plan.describe(generates=self.plan.reads_text and not self.predictions),
            "prompts": ", ".join(f"{name}={value}" for name, value in prompt.items()),
            "dtype": self.options.dtype,
        }

    def describe_inputs(self) -> dict[str, str]:
        """What else the rows of the table depend on, but for functions of the user's.

        When those change, their values alone are to be measured again; see `take_back`.
        """
        fields = sorted(self.fields.items())
        files = [*find_files(self.options.data), *self.options.predictions]
        return {
            "format": self.options.format or "detected",
            "field": ", ".join(f"{name}={column}" for name, column in fields) or "none",
            "strict": str(self.options.strict).lower(),
            "keep_predictions": str(self.options.keep_predictions).lower(),
            **{f"model {name}": spec for name, spec in self.specs.items()},
            **describe_files(files),
        }


def run_evaluate(options: Evaluate) -> int:
    """Evaluates models on a data file; returns the exit code.

    Raises:
      InstructJaxError: there is no new table; see the message. What was done is kept.
    """
    run = _check(options)
    with open_parts(
        options.out,
        run.describe(),
        run.describe_inputs(),
        overwrite=options.overwrite,
        schema=EVALUATION_SCHEMA,
    ) as parts:
        if parts.complete:
            print(escape_controls(f"{options.out} is complete: an earlier run had written it"))
            return 0
        texts = take_back(parts, run.sources, len(run.specs))
        if parts.rows:
            say_error(f"going on after {parts.rows:,} rows that are evaluated", label="")
        if texts:
            say_error(say_again(texts, run.sources), label="")
        for place, name in enumerate(run.specs):
            if not _evaluate_model(run, parts, place, name, texts.get(name, {})):
                parts.discard()
                return 1
        notes = list(read_notes(parts))
        for note in notes:
            count, first = note.get("strangers", (0, ""))
            if count:
                say_error(
                    f"{count:,} ids of the predictions of {note['model']} are of no row of the "
                    f"data, the first {first!r:.80}",
                    label="warning: ",
                )
        with RejectsFile(options.out) as rejects:
            for reject in (reject for note in notes for reject in note["rejects"]):
                rejects.write(Reject(**reject))
        failed = sum((Counter(note["failed"]) for note in notes), Counter())
        if failed and (options.strict or not any(note["values"] for note in notes)):
            counts = ", ".join(f"{name} on {count:,} rows" for name, count in failed.items())
            say_error(
                f"a metric failed ({counts}) and {options.out} was not written; the first, "
                f"{find_first_failure(notes)}; mend it: what was written is kept, and the same "
                "command measures it again"
            )
            return 1
        if not any(note["values"] for note in notes):
            parts.discard()
            say_error(
                f"no row could be evaluated, and {options.out} was not written; "
                + (rejects.summarize() if rejects.total else list_reasons(notes))
            )
            return 1
        metadata = run.describe()
        for note in notes:
            if note.get("complete") and note["about"]:
                metadata |= join_metadata(metadata, note["about"], note["model"])
        rows = parts.rows // len(run.specs)
        parts.finish(metadata)
    show_evaluation(options.out, rows, rejects)
    if failed and options.keep_predictions and options.out.suffix.lower() != ".csv":
        say_error(
            f"a metric failed; the first, {find_first_failure(notes)}; what was written is in the "
            f"table: with --predictions {options.out}, once a model, and another --out (or "
            "--overwrite) it is measured again without being written again",
            label="warning: ",
        )
    return 0


def _check(options: Evaluate) -> Run:
    """All that can be wrong with a call before a model is loaded."""
    metrics = find_metrics(options.metrics)
    generation = GenerateOptions(
        max_new_tokens=options.max_new_tokens,
        stop=options.stop,
        layout=options.layout,
        truncation=options.truncation,
        max_length=options.max_length,
    )
    plan = Plan(
        metrics=metrics,
        normalization=options.normalization,
        generation=generation,
        keep_predictions=options.keep_predictions,
    )
    PromptOptions(**options.prompt_options())
    if options.predictions and not options.model and not plan.reads_scores:
        specs = name_files(options.predictions)
    else:
        specs = name_specs(options.model or (DEFAULT_MODEL,))
    if options.predictions and not plan.reads_text:
        raise UsageError("--predictions are for metrics of text", remedy="leave them out")
    if options.predictions and len(options.predictions) != len(specs):
        raise UsageError(
            f"there are {len(specs)} models and predictions of {len(options.predictions)}",
            remedy="give --predictions once a model, in their order",
        )
    fields = parse_fields(options.field)
    check_target(options.out, overwrite=options.overwrite or is_finished(options.out))
    check_apart(options.data, options.out)
    found = {
        name: read_predictions(file, name)
        for name, file in zip(specs, options.predictions, strict=False)
    }
    run = Run(options=options, specs=specs, plan=plan, fields=fields, predictions=found)
    run.read_rows()  # opens the files, and checks their columns
    return run


def _evaluate_model(
    run: Run, parts: Parts, place: int, name: str, written: Mapping[int, Written]
) -> bool:
    """Does what is not done yet of one model; False where --strict found rows that cannot be.

    Args:
      written: what it wrote in an earlier run for rows that are to be measured again.
    """
    options, base = run.options, place * STRIDE
    mine = {f - base: s - base for f, s in parts.done.items() if base <= f < base + STRIDE}
    if any(first == stop for first, stop in mine.items()):
        return True
    model, encoder, about = _load(run, run.specs[name]) if run.needs_models else (None, None, {})
    for note in read_notes(parts):
        known = note["about"].get("model_fingerprint") if note["model"] == name else None
        if known not in (None, about.get("model_fingerprint")):
            raise UsageError(
                f"the model {name} is not the one that an earlier run began with",
                file=options.out,
                remedy="start afresh with --overwrite",
            )
    if (
        options.strict
        and not mine
        and not check_all(run.read_rows(), lambda example: _try(run.plan, model, encoder, example))
    ):
        return False
    headway, work = Headway(rows=sum(s - f for f, s in mine.items())), Work()
    texts = run.predictions.get(name)
    caching = (
        ScoreCache(options.cache, model)
        if options.cache is not None and model is not None
        else nullcontext()
    )
    progress = ScoringProgress(estimate_rows(options.data), log=True, verb="evaluating")
    seen: set[str] = set()
    told: set[str] = set()
    stop = max(mine.values(), default=0)
    with caching as cache, progress:
        chunks = evaluate_chunks(
            model,
            name,
            run.read_rows(seen),
            run.plan,
            encoder=encoder,
            written=written,
            predictions=None
            if texts is None
            else lambda example, _: texts.get(example.id or "", ()),
            done=mine,
            cache=cache,
            headway=headway,
            work=work,
            on_progress=lambda: progress.update(headway.rows, work.useful),
        )
        with closing(chunks):
            for chunk in chunks:
                for metric, failures in chunk.metric_failures.items():
                    if metric not in told:
                        say_error(f"{failures[0].error}", label="warning: ")
                    told.add(metric)
                note = describe_chunk(chunk, place, name, run.sources)
                note |= {"model": name, "about": about}
                parts.add(base + chunk.first, base + chunk.stop, chunk.records, note)
                stop = max(stop, chunk.stop)
    end = {**describe_end(run.sources), "model": name, "about": about}
    if texts is not None:
        end["strangers"] = find_strangers(texts, seen)
    parts.add(base + stop, base + stop, [], end)
    return True


def _load(run: Run, spec: str) -> tuple[Model, PromptEncoder, dict[str, str]]:
    if sys.stderr.isatty():
        print(f"loading {escape_controls(spec)}", file=sys.stderr)
    model = load_model(spec, dtype=run.options.dtype, mesh=choose_mesh(run.options.mesh))
    encoder = make_encoder(model, **run.options.prompt_options())
    return model, encoder, describe_run(model, encoder, ("cz",))


def _try(plan: Plan, model: Model | None, encoder: PromptEncoder | None, example: Example) -> None:
    check_row(example, 0, plan)
    if model is not None and encoder is not None:
        encode_example(model, encoder, example, 0, plan)
