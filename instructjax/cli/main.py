"""The command line: parses, runs a verb, and turns every end of it into an exit code."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated

import tyro

from instructjax.cli.convert import Convert
from instructjax.cli.demo import Demo
from instructjax.cli.evaluate import Evaluate
from instructjax.cli.finetune import Finetune, check_config_first, find_defaults, with_defaults
from instructjax.cli.info import Info
from instructjax.cli.lm_eval import LmEval
from instructjax.cli.messages import say_error, say_warning
from instructjax.cli.plan import Plan
from instructjax.cli.process_options import ProcessOptions, leave_together, run_together
from instructjax.cli.rank import Rank
from instructjax.cli.report import Report
from instructjax.cli.sample import Sample
from instructjax.cli.score import Score
from instructjax.cli.split import Split
from instructjax.errors import InstructJaxError, exit_code_of

VERBS = {
    "demo": Demo,
    "score": Score,
    "rank": Rank,
    "finetune": Finetune,
    "sample": Sample,
    "split": Split,
    "evaluate": Evaluate,
    "report": Report,
    "plan": Plan,
    "lm-eval": LmEval,
    "convert": Convert,
    "info": Info,
}
Verb = (
    Demo
    | Score
    | Rank
    | Finetune
    | Sample
    | Split
    | Evaluate
    | Report
    | Plan
    | LmEval
    | Convert
    | Info
)

FAILED, WRONG_USAGE, BROKEN_PIPE = 1, 2, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line.

    Args:
      argv: the words after the program's name; by default those it was started with.

    Returns:
      The exit code: 0, 1 for a failure, 2 for a wrong call, 130 when interrupted.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    # Closed from the start, they would be None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # A terminal that cannot show a character gets an escape, not a crash.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = say_warning
            code = _run(args)
        sys.stdout.flush()
        return leave_together(code)
    except BrokenPipeError:
        # The reader of the output has gone; python must not complain when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return leave_together(BROKEN_PIPE)
    except BaseException:
        leave_together(FAILED)
        raise


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        import instructjax

        print(f"instructjax {instructjax.__version__}")
        return 0
    try:
        verb = _parse(args or ["--help"])
    except InstructJaxError as error:
        say_error(str(error))
        return error.exit_code
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else WRONG_USAGE
        if code == 0:
            example = VERBS[args[0]].EXAMPLE if args and args[0] in VERBS else Demo.EXAMPLE
            print(f"\nexample: {example}")
        return code if args else WRONG_USAGE
    try:
        return run_together(verb, verb.run) if isinstance(verb, ProcessOptions) else verb.run()
    except InstructJaxError as error:
        say_error(str(error))
        _show_traceback()
        return error.exit_code
    except KeyboardInterrupt as error:
        say_error(f"interrupted: {verb.describe_interrupt()}", label="")
        return exit_code_of(error)
    except SystemExit as end:
        return exit_code_of(end)
    except BrokenPipeError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()
        say_error(
            f"{type(error).__name__}: {reason[0] if reason else 'no reason given'} (unexpected; "
            "set INSTRUCTJAX_TRACEBACK=1 to see where)"
        )
        _show_traceback()
        return FAILED


def _parse(args: list[str]) -> Verb:
    subcommand = tyro.conf.subcommand
    given = find_defaults(args[1:]) if args[0] == "finetune" else {}
    defaults = {"default": with_defaults(given)} if given else {}
    verb = tyro.cli(
        Annotated[Demo, subcommand("demo")]
        | Annotated[Score, subcommand("score")]
        | Annotated[Rank, subcommand("rank")]
        | Annotated[Finetune, subcommand("finetune", **defaults)]
        | Annotated[Sample, subcommand("sample")]
        | Annotated[Split, subcommand("split")]
        | Annotated[Evaluate, subcommand("evaluate")]
        | Annotated[Report, subcommand("report")]
        | Annotated[Plan, subcommand("plan")]
        | Annotated[LmEval, subcommand("lm-eval")]
        | Annotated[Convert, subcommand("convert")]
        | Annotated[Info, subcommand("info")],  # type: ignore[arg-type]
        prog="instructjax",
        description="Pr(y | c, z) of instruction-tuned language models: c the instruction, z the "
        "user's input, y the response.",
        args=args,
    )
    check_config_first(verb, given)
    return verb


def _show_traceback() -> None:
    if os.environ.get("INSTRUCTJAX_TRACEBACK", "0") not in ("", "0"):
        traceback.print_exc()
