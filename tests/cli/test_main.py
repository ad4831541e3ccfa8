"""The command line as a whole: fast help, exit codes, one clear line for every failure."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal, get_args, get_type_hints

import pytest

import instructjax
from instructjax.cli import main as cli
from instructjax.cli.main import VERBS, main
from instructjax.cli.messages import escape_controls
from instructjax.cli.score import Score
from instructjax.errors import DataError, UsageError
from instructjax.prompts import options

ROOT = Path(__file__).parents[2]
HEAVY = (
    "jax",
    "jaxlib",
    "flax",
    "transformers",
    "tokenizers",
    "numpy",
    "pyarrow",
    "pandas",
    "lm_eval",
)


def run_python(*args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=env)


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from instructjax.cli.main import main; code = main(sys.argv[1:]); "
        f"print('LOADED', code, *[m for m in {HEAVY} if m in sys.modules])"
    )
    for args in (["--help"], ["score", "--help"], ["lm-eval", "--help"], ["score"]):
        result = run_python("-c", code, *args)
        wanted = "LOADED 2" if args == ["score"] else "LOADED 0"
        assert result.stdout.splitlines()[-1] == wanted, result


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = f"import sys, instructjax; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python("-c", code).stdout.strip() == "[]"


def test_python_dash_m() -> None:
    result = run_python("-m", "instructjax", "--version")
    assert result.returncode == 0
    assert result.stdout.split()[0] == "instructjax"


def test_every_public_name_is_there() -> None:
    for name in instructjax.__all__:
        assert getattr(instructjax, name) is not None
    assert set(instructjax.__all__) <= set(dir(instructjax))
    assert instructjax.scoring.score is instructjax.score
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = instructjax.nonsense


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_ends_with_an_example(
    verb: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert main([verb, "--help"]) == 0
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith(f"example: instructjax {verb}")
    # The example is itself a call that parses, where its file is there.
    monkeypatch.chdir(tmp_path)
    Path("config.toml").write_text('data = ["rows.jsonl"]\nout = "run"\n')
    assert cli._parse(last.removeprefix("example: instructjax ").split()) is not None


def test_a_bare_call_shows_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["score"],
        ["score", "a.jsonl"],
        ["score", "a.jsonl", "--out", "s.csv", "--dtype", "float16"],
        ["score", "a.jsonl", "--out", "s.csv", "--max-length", "many"],
        ["demo", "--colour"],
    ],
)
def test_wrong_calls(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err and "Traceback" not in err


def test_choices_are_those_of_the_prompts() -> None:
    hints = get_type_hints(Score)
    for name, kind in (
        ("boundary", options.Boundary),
        ("truncation", options.Truncation),
        ("turns", options.Turns),
    ):
        assert get_args(hints[name]) == get_args(kind)
        assert hints[name].__origin__ is Literal


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UsageError("wrong", remedy="do that"), 2, "error: wrong; do that\n"),
        (DataError("bad", file="a\x1b[2J.csv", row="line 3"), 1, "a\\x1b[2J.csv, line 3: bad\n"),
        (KeyboardInterrupt(), 130, "interrupted: a download"),
        (ValueError("odd\nthing"), 1, "error: ValueError: odd (unexpected; set INSTRUCTJAX_TR"),
        (RuntimeError(), 1, "error: RuntimeError: no reason given"),
        (SystemExit(3), 3, ""),
    ],
)
def test_every_failure_is_one_line(
    error: BaseException,
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: object) -> int:
        raise error

    monkeypatch.delenv("INSTRUCTJAX_TRACEBACK", raising=False)
    monkeypatch.setattr(cli.Demo, "run", fail)
    assert main(["demo"]) == code
    err = capsys.readouterr().err
    assert words in err and err.count("\n") <= 1
    monkeypatch.setenv("INSTRUCTJAX_TRACEBACK", "1")
    main(["demo"])
    shown = "Traceback" in capsys.readouterr().err
    assert shown == isinstance(error, Exception)


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line_without_the_code_that_gave_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(self: object) -> int:
        warnings.warn("rows are \x1b[2Jshort\nsecond line", stacklevel=1)
        warnings.warn("for developers", RuntimeWarning, stacklevel=1)
        return 0

    shown = warnings.showwarning
    monkeypatch.setattr(cli.Demo, "run", run)
    assert main(["demo"]) == 0
    assert capsys.readouterr().err == "warning: rows are \\x1b[2Jshort\n"
    assert warnings.showwarning is shown


def test_a_reader_that_goes_away() -> None:
    code = (
        "import sys; from instructjax.cli import main as cli; "
        "cli.Demo.run = lambda self: [print('y' * 100) for _ in range(10_000)] and 0; "
        "sys.exit(cli.main(['demo']))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env
    )
    assert pipe.stdout is not None and pipe.stderr is not None
    pipe.stdout.readline()
    pipe.stdout.close()
    assert pipe.stderr.read() == b""
    assert pipe.wait() == 141
    pipe.stderr.close()


def test_an_ascii_terminal_gets_escapes() -> None:
    code = (
        "from instructjax.cli import main as cli; "
        "cli.Demo.run = lambda self: print('caf\\u00e9') or 0; raise SystemExit(cli.main(['demo']))"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert (result.returncode, result.stdout) == (0, "caf\\xe9\n")


def test_controls_are_escaped() -> None:
    assert escape_controls("é \u202e\x07") == "é \\u202e\\x07"
