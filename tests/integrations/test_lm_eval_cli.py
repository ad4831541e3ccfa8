"""`instructjax lm-eval`: the harness' table, a file of results, one line for every failure."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.lm_eval import LmEval
from instructjax.cli.main import main
from instructjax.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "fixtures" / "llama-tied")


def test_a_run(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, cache = tmp_path / "results.json", tmp_path / "answers"
    words = ["lm-eval", "--tasks", "tiny_choice,tiny_text", "--model", TINY, "--num-fewshot", "1"]
    words += ["--include-path", str(tasks), "--limit", "2", "--apply-chat-template"]
    words += ["--system-instruction", "Be short.", "--out", str(out)]
    cached = [*words, "--use-cache", str(cache)]
    assert main(cached) == 0
    printed = capsys.readouterr().out
    assert "|tiny_choice|" in printed.replace(" ", "") and "bits_per_byte" in printed
    assert "limited to 2 a task, scored 14 requests, computed " in printed
    assert printed.rstrip().endswith(f"wrote {out}")
    results = json.loads(out.read_text())
    assert results["n-samples"]["tiny_choice"]["effective"] == 2
    assert len(results["samples"]["tiny_choice"]) == 2
    context = results["samples"]["tiny_choice"][0]["arguments"][0][0]
    assert context.startswith("<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n")
    assert context.count("<|im_start|>assistant") == 2

    assert main(cached) == 2
    assert f"error: {out}: exists already; " in capsys.readouterr().err
    assert main([*cached, "--overwrite"]) == 0
    assert "scored 0 requests, computed 0 tokens" in capsys.readouterr().out
    again = json.loads(out.read_text())
    assert again["results"] == results["results"]

    assert main([*words, "--overwrite", "--no-fewshot-as-multiturn"]) == 0
    results = json.loads(out.read_text())
    context = results["samples"]["tiny_choice"][0]["arguments"][0][0]
    assert context.count("Question:") == 2 and context.count("<|im_start|>assistant") == 1


def run_python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=given)


def test_torch_is_not_imported(tasks: Path, tmp_path: Path) -> None:
    """One that cannot be imported stands in the way; transformers finds its version too old."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch is imported')")
    (tmp_path / "torch-1.0.dist-info").mkdir()
    about = "Metadata-Version: 2.1\nName: torch\nVersion: 1.0\n"
    (tmp_path / "torch-1.0.dist-info" / "METADATA").write_text(about)
    words = ["lm-eval", "--tasks", "tiny_choice,tiny_text", "--model", TINY]
    words += ["--include-path", str(tasks), "--apply-chat-template", "--max-length", "150"]
    result = run_python(
        "import importlib.util, sys\n"
        "from instructjax.cli.main import main\n"
        f"code = main({words!r})\n"
        "print(code, importlib.util.find_spec('torch').origin, 'torch' in sys.modules)\n",
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]),
    )
    assert result.returncode == 0, result.stderr
    *table, ending, last = result.stdout.splitlines()
    assert last == f"0 {tmp_path / 'torch' / '__init__.py'} False", result.stderr
    assert any("acc_mutual_info" in line for line in table)
    assert ending.startswith("scored 22 requests, computed "), ending
    counts = re.search(r"computed (\S+) tokens of (\S+), (\S+) distinct among", ending)
    assert counts, ending
    computed, asked, distinct = (int(count.replace(",", "")) for count in counts.groups())
    assert distinct <= computed < asked


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": Path("r.txt")}, r"r.txt: results are JSON; end the name in .json"),
        ({"out": Path("/no/such/r.json")}, "its folder is not there"),
        ({"limit": 0.0}, "--limit is not above 0"),
        ({"num_fewshot": -1}, "--num-fewshot is below 0"),
        ({"model": "no/such/model/anywhere"}, "no/such/model"),
        ({"tasks": ",", "model": TINY}, "no task is named"),
    ],
)
def test_wrong_calls(tasks: Path, options: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"tasks": "tiny_text", "include_path": tasks, **options}
    with pytest.raises(UsageError, match=words):
        LmEval(**given).run()


def test_without_the_harness() -> None:
    result = run_python(
        "import sys; sys.modules['lm_eval'] = None\n"
        "from instructjax.cli.main import main\n"
        f"print(main(['lm-eval', '--tasks', 'copa', '--model', {TINY!r}]))\n"
    )
    assert result.stdout == "2\n"
    assert result.stderr == (
        'error: lm-evaluation-harness is not installed; pip install "instructjax[lm-eval]"\n'
    )


def test_what_an_interrupt_leaves() -> None:
    assert "nothing was written" in LmEval(tasks="a").describe_interrupt()
    assert "a_rank0.db; run it again" in LmEval(tasks="a", use_cache="a").describe_interrupt()
