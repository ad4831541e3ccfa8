"""`instructjax demo` and `instructjax info`, on the tiny model and on the embedded one."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from instructjax.cli import demo_run, info_run
from instructjax.cli.main import main
from instructjax.data import Example
from instructjax.models import load_model
from instructjax.scoring import score
from instructjax.scoring.api import make_encoder


def run_demo(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    assert main(["demo", *args]) == 0
    return capsys.readouterr().out


def test_the_demo_shows_the_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    monkeypatch.setattr(demo_run, "load_model", lambda spec, **options: tiny_model)
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
    monkeypatch.setattr(demo_run, "load_model", lambda spec, **options: tiny_model)
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
    monkeypatch.setattr(info_run, "load_model", lambda spec, **options: tiny_model)
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["info", "tiny"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "llama-tied",
        f"{tiny_model.config.num_params:,} parameters",
        "256 tokens",
        "352 rows",
        "F32, kept as float32",
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
    assert about["weights"] == "F32"
    assert about["num_bytes"] == 4 * about["num_params"]
    assert about["config"]["num_kv_heads"] == 2
    assert about["rendered"]["response"] == "RESPONSE<|im_end|>"
    assert about["eos_ids"] == [2]


def test_info_of_a_base_model(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_model: Any
) -> None:
    bare = dataclasses.replace(tiny_model.tokenizer, chat_template=None)
    model = dataclasses.replace(tiny_model, tokenizer=bare)
    monkeypatch.setattr(info_run, "load_model", lambda spec, **options: model)
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


@pytest.mark.slow
@pytest.mark.registry
def test_each_token_of_the_demo_is_that_of_a_pass_over_its_prefix() -> None:
    model = load_model("smollm2-135m-instruct")
    example = Example(
        instruction=demo_run.INSTRUCTION, input=demo_run.INPUT, output=demo_run.RESPONSE
    )
    (request,) = make_encoder(model).encode(example, row=0)
    ((start, stop),) = request.spans

    @jax.jit
    def last_logits(params: Any, ids: Any, last: Any) -> Any:
        index = jnp.arange(ids.size)
        # Nothing behind the prefix is a token: its ids are zero, and no query sees it.
        live = index <= last
        ends = jnp.where(live, last + 1, 0)
        module = nnx.merge(model.graphdef, params)
        hidden = module(jnp.where(live, ids, 0)[None], index[None], ends[None], tile=64)
        return jnp.dot(module.output_table, hidden[0, last], precision="highest")

    found = score(model, example, progress=False).token_log_probs[0]
    assert len(found) == stop - start == 12
    ids = jnp.zeros(-(-stop // 64) * 64, int).at[:stop].set(request.ids)
    for k, place in enumerate(range(start, stop)):
        logits = np.asarray(last_logits(model.params, ids, place - 1), np.float64)
        top = logits.max()
        log_prob = logits[request.ids[place]] - top - np.log(np.exp(logits - top).sum())
        assert found[k] == pytest.approx(log_prob, abs=1e-4), k
    assert sum(found) == pytest.approx(-8.931, abs=5e-4)


@pytest.mark.registry
def test_info_says_that_the_embedded_model_is_quantized(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["info", "smollm2-135m-instruct"]) == 0
    assert re.search(r"weights +Q4_1, dequantized to float32", capsys.readouterr().out)
