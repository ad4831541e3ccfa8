"""`instructjax lm-eval`: the harness' table, a file of results, one line for every failure."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from instructjax.cli.lm_eval import LmEval
from instructjax.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore")

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests" / "fixtures" / "llama-tied")


def test_a_run(tasks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lm_eval", minversion="0.4.13")
    options: dict[str, Any] = {
        "tasks": "tiny_choice,tiny_text",
        "model": TINY,
        "include_path": tasks,
        "num_fewshot": 1,
        "limit": 2.0,
        "apply_chat_template": True,
        "use_cache": str(tmp_path / "answers"),
        "out": tmp_path / "results.json",
    }
    assert LmEval(**options).run() == 0
    out = capsys.readouterr().out
    assert "|tiny_choice|" in out.replace(" ", "") and "bits_per_byte" in out
    assert "limited to 2 a task, scored 14 requests, " in out
    assert out.rstrip().endswith(f"wrote {tmp_path / 'results.json'}")
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["n-samples"]["tiny_choice"]["effective"] == 2
    assert len(results["samples"]["tiny_choice"]) == 2
    context = results["samples"]["tiny_choice"][0]["arguments"][0][0]
    assert context.count("<|im_start|>assistant") == 2

    with pytest.raises(UsageError, match="results.json: exists already"):
        LmEval(**options).run()
    assert LmEval(**options, overwrite=True).run() == 0
    assert "scored 0 requests" in capsys.readouterr().out
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["results"] == results["results"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"out": Path("r.txt")}, r"r.txt: results are JSON; end the name in .json"),
        ({"out": Path("/no/such/r.json")}, "its folder does not exist"),
        ({"limit": 0.0}, "--limit is not above 0"),
        ({"num_fewshot": -1}, "--num-fewshot is below 0"),
        ({"model": "no/such/model/anywhere"}, "no/such/model"),
        ({"tasks": ",", "model": TINY}, "no task is named"),
        ({"tasks": "tiny_writing", "model": TINY}, "task tiny_writing: .*does not sample yet"),
    ],
)
def test_wrong_calls(tasks: Path, options: dict[str, Any], words: str) -> None:
    if "model" in options:
        pytest.importorskip("lm_eval", minversion="0.4.13")
    given: dict[str, Any] = {"tasks": "tiny_text", "include_path": tasks, **options}
    with pytest.raises(UsageError, match=words):
        LmEval(**given).run()


def test_without_the_harness() -> None:
    code = (
        "import sys; sys.modules['lm_eval'] = None\n"
        "from instructjax.cli.lm_eval import LmEval\n"
        "from instructjax.errors import UsageError\n"
        "try:\n"
        f"    LmEval(tasks='copa', model={TINY!r}).run()\n"
        "except UsageError as error:\n"
        "    print(error)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert result.stdout == (
        'lm-evaluation-harness is not installed; pip install "instructjax[lm-eval]"\n'
    ), result.stderr


def test_what_an_interrupt_leaves() -> None:
    assert "nothing was written" in LmEval(tasks="a").describe_interrupt()
    assert "a_rank0.db; run it again" in LmEval(tasks="a", use_cache="a").describe_interrupt()
