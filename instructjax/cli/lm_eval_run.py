"""`instructjax lm-eval`: tasks of lm-evaluation-harness through this project's model."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from instructjax.cli.lm_eval import LmEval
from instructjax.cli.messages import escape_controls
from instructjax.errors import DataError, UsageError, remedy_for_writing
from instructjax.models import parse_spec
from instructjax.scoring.tables.disk import write_whole
from instructjax.sharding.processes import leads


def run_lm_eval(options: LmEval) -> int:
    """Runs the tasks and prints the table; returns the exit code.

    Raises:
      InstructJaxError: see the message.
    """
    if options.out is not None and leads():
        _check_out(options.out, overwrite=options.overwrite)
    if (options.num_fewshot or 0) < 0 or (options.limit is not None and options.limit <= 0):
        raise UsageError(
            "--num-fewshot is below 0, or --limit is not above 0", remedy="give a larger number"
        )
    parse_spec(options.model)
    # First ours, which says so if the harness is not installed.
    from instructjax.integrations.lm_eval import InstructJaxLM
    from instructjax.integrations.lm_eval_tasks import find_tasks

    from lm_eval.evaluator import simple_evaluate  # isort: skip
    from lm_eval.utils import handle_non_serializable, make_table  # isort: skip

    manager, names = find_tasks(options.tasks.split(","), options.include_path)
    if sys.stderr.isatty():
        print(f"loading {escape_controls(options.model)}", file=sys.stderr)
    lm = InstructJaxLM(
        options.model,
        dtype=options.dtype,
        mesh=options.mesh,
        boundary=options.boundary,
        truncation=options.truncation,
        max_length=options.max_length,
        rolling_bos=options.rolling_bos,
    )
    if not leads():
        lm.follow()
        return 0
    start = time.monotonic()
    results: Any = simple_evaluate(
        model=lm,
        tasks=list(names),
        task_manager=manager,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        system_instruction=options.system_instruction,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        use_cache=options.use_cache,
        log_samples=options.out is not None,
        torch_random_seed=None,  # type: ignore[arg-type]
    )
    lm.release()
    seconds = time.monotonic() - start
    print(make_table(results))
    if results.get("groups"):
        print(make_table(results, "groups"))
    ending = "results were not written (--out FILE.json)"
    if options.out is not None:
        text = json.dumps(results, indent=2, default=handle_non_serializable, ensure_ascii=False)
        _write(options.out, text + "\n")
        ending = f"wrote {options.out}"
    limited = "" if options.limit is None else f"limited to {options.limit:g} a task, "
    noted = "".join(f" ({count:,} {name})" for name, count in lm.flags.most_common())
    done = []
    if lm.num_scored or not lm.num_written:
        done.append(
            f"scored {lm.num_scored:,} requests, computed {lm.work.useful:,} tokens of "
            f"{lm.work.requested:,}, {lm.work.distinct:,} distinct among those packed together"
        )
    if lm.num_written:
        done.append(f"wrote {lm.num_new_tokens:,} tokens to {lm.num_written:,} requests")
    print(
        escape_controls(f"{limited}{', '.join(done)}{noted}, in {seconds:.1f} s; {ending}"),
        flush=True,
    )
    return 0


def _check_out(path: Path, *, overwrite: bool) -> None:
    if path.suffix.lower() != ".json":
        raise UsageError("results are JSON", file=path, remedy="end the name in .json")
    if path.exists() and not (overwrite and path.is_file()):
        raise UsageError(
            "exists already", file=path, remedy="give another name, or replace it with --overwrite"
        )
    if not path.absolute().parent.is_dir():
        raise UsageError("its folder is not there", file=path, remedy="make it, or give another")


def _write(path: Path, text: str) -> None:
    """The file appears when it is complete."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write_whole(path, text, staged=part)
    except OSError as error:
        raise DataError(
            f"the results cannot be written: {error.strerror or error}",
            file=path,
            remedy=f"{remedy_for_writing(error)} or choose another place; with --use-cache nothing "
            "is scored again",
        ) from error
    finally:
        part.unlink(missing_ok=True)
