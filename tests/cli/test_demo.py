"""`instructjax demo` and `instructjax info`, on the tiny model and on the embedded one."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import pytest

from instructjax.cli import demo_run, info_run
from instructjax.cli.main import main
from instructjax.data import Example
from instructjax.scoring import score


def run_demo(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["demo", *args]) == 0
    return capsys.readouterr().out


def test_the_demo_shows_the_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    monkeypatch.setattr(demo_run, "load_model", lambda spec, dtype: tiny_model)
    monkeypatch.setenv("COLUMNS", "80")
    out = run_demo(capsys)
    assert max(len(line) for line in out.splitlines() if "echo" not in line) <= 80
    example = Example(
        instruction=demo_run.INSTRUCTION, input=demo_run.INPUT, output=demo_run.RESPONSE
    )
    alone = score(tiny_model, example, contexts="cz,c,z,none", progress=False)
    assert f"log Pr(y | c, z) = {alone.log_prob[0]:.3f} nats" in out
    assert f"({alone.num_tokens[0]} tokens" in out
    for x in alone.token_log_probs[0]:
        assert f"{x:.2f}" in out
    for x in alone.log_prob:
        assert f"{x:.3f}" in out
    assert f"{alone.log_prob[0] - alone.log_prob[3]:.3f}" in out
    for text in demo_run.OTHERS:
        assert text.split()[-1] in out
    shares = [float(x) for x in re.findall(r"(\d+\.\d)%", out)]
    assert sum(shares) == pytest.approx(100, abs=0.4)
    assert "instructjax score rows.jsonl" in out


def test_what_the_demo_says_to_type_next_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    monkeypatch.setattr(demo_run, "load_model", lambda spec, dtype: tiny_model)
    out = run_demo(capsys, "--model", "somewhere/model")
    (row,) = re.findall(r"echo '(.*)' > rows.jsonl", out)
    assert Example(**json.loads(row)).outputs == ("2", "3")
    assert "--model somewhere/model" in out and 'load_model("somewhere/model")' in out
    (call,) = re.findall(r"ij\.Example\(.*\)", out)
    assert call.endswith('output="2"))')


def test_ratios_in_words() -> None:
    assert demo_run._describe_ratio(math.log(15.44)) == "15 times less likely"
    assert demo_run._describe_ratio(-math.log(3.21)) == "3.2 times more likely"
    assert demo_run._describe_ratio(math.log(520_300)) == "520,000 times less likely"
    assert demo_run._describe_ratio(math.log(10) * 40) == "10^40.0 times less likely"
    assert demo_run._describe_ratio(0.0) == "1.0 times less likely"


def test_info(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    monkeypatch.setattr(info_run, "load_model", lambda spec, dtype: tiny_model)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["info", "tiny"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "llama-tied",
        f"{tiny_model.config.num_params:,} parameters",
        "256 tokens",
        "352 rows",
        "tied to the embedding",
        "4 of 8, 2 for keys",
        "<|im_end|>",
        tiny_model.fingerprint,
    ):
        assert words in shown, words
    assert "INSTRUCTION\n\nINPUT<|im_end|>" in shown
    assert main(["info", "tiny", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["num_params"] == tiny_model.config.num_params
    assert about["num_bytes"] == 4 * about["num_params"]
    assert about["config"]["num_kv_heads"] == 2
    assert about["rendered"]["response"] == "RESPONSE<|im_end|>"
    assert about["eos_ids"] == [2]


def test_info_of_a_base_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    bare = dataclasses.replace(tiny_model.tokenizer, chat_template=None)
    model = dataclasses.replace(tiny_model, tokenizer=bare)
    monkeypatch.setattr(info_run, "load_model", lambda spec, dtype: model)
    assert main(["info", "tiny"]) == 0
    assert re.search(r"template +none", capsys.readouterr().out)
    assert main(["info", "tiny", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["rendered"] is None and about["layout"] == "plain"


@pytest.mark.registry
def test_the_embedded_model_gives_its_number(capsys: pytest.CaptureFixture[str]) -> None:
    out = run_demo(capsys)
    found = re.search(r"log Pr\(y \| c, z\) = (-\d+\.\d+) nats +\((\d+) tokens", out)
    assert found is not None
    assert float(found[1]) == pytest.approx(-8.931, abs=5e-4)
    assert int(found[2]) == 12
