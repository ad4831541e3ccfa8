"""`instructjax plan` in processes of its own, as a person calls it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from instructjax.cli.main import main

FIXTURE = Path(__file__).parents[1] / "fixtures" / "llama-untied"


def plan(*words):
    return subprocess.run(
        [sys.executable, "-m", "instructjax", "plan", *map(str, words)],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80", "PYTHONWARNINGS": "ignore"},
        timeout=600,
    )


def test_a_compiled_plan_without_weights(tmp_path):
    """The folder has a configuration and nothing else; eight virtual devices are made."""
    (tmp_path / "config.json").write_text((FIXTURE / "config.json").read_text())
    out = tmp_path / "plan.json"
    mesh = ("--mesh", "fsdp=4,tensor=2", "--batch", 8, "--length", 64)
    done = plan(tmp_path, "--topology", "cpu:8", *mesh, "--json", out)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("parameters", "optimizer", "temporaries", "all-gather", "reduce-scatter", "needs"):
        assert word in done.stdout
    values = json.loads(out.read_text())
    assert values["source"] == "compiled" and values["num_devices"] == 8
    assert values["needed_bytes"] > 0 and values["collectives"]


def test_an_estimate_that_does_not_fit_names_one_that_does(tmp_path):
    out = tmp_path / "plan.json"
    done = plan(
        *("llama-3.1-8b", "--topology", "v5e:4x4", "--batch", 64, "--length", 4096),
        *("--compile", 0, "--json", out),
    )
    assert done.returncode == 0, done.stderr
    assert "does not fit" in done.stdout and "the nearest that fits" in done.stdout
    values = json.loads(out.read_text())
    assert values["fits"] is False and values["source"] == "estimated"
    near = values["nearest_that_fits"]
    assert near["needed_bytes"] < values["capacity_bytes"] < values["needed_bytes"]
    assert (near["batch"], near["length"], near["fits"]) == (64, 4096, True)


def test_a_search_prints_a_ranked_table(tmp_path):
    out = tmp_path / "plans.json"
    words = ("llama-3.2-1b", "--topology", "h100:8", "--batch", 32, "--search", "--compile", 0)
    words = (*words, "--json", out)
    done = plan(*words)
    assert done.returncode == 0, done.stderr
    assert "estimated" in done.stdout and "the best: --mesh" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    ranked = json.loads(out.read_text())["ranked"]
    times = [each["seconds_at_best"] for each in ranked if each["fits"]]
    assert times == sorted(times) and len(times) > 3


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("lama-3.1-8b", "--topology", "v5e:4x4"), "did you mean llama-3.1-8b"),
        (("llama-3.1-8b", "--topology", "v9:4x4"), "v6e:8x8"),
        (("llama-3.1-8b", "--topology", "v5e:4x4", "--mesh", "fsdp=3"), "product is 16"),
        (("llama-3.1-8b", "--topology", "v5e:4x4", "--mesh", "tensor=16"), "tensor of 1, 2, 4, 8"),
        (("llama-3.1-8b", "--topology", "v5e:4x4", "--batch", "63"), "a --batch of 48 or 64"),
        (("llama-3.1-8b", "--topology", "v5e:4x4", "--length", "0"), "1 or more"),
        (("llama-3.1-8b", "--topology", "v5e:4x4", "--lora-rank", "8"), "give --train lora"),
        (
            (
                "llama-3.1-8b",
                "--topology",
                "v5e:4x4",
                "--search",
                "--batch",
                "1",
                "--length",
                "200",
            ),
            "a --batch that divides by 2, such as 2, or a --length of 253, for",
        ),
    ],
)
def test_mistakes_are_told_with_what_would_do(capsys, words, says):
    assert main(["plan", *words, "--compile", "0"]) == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [
        ("--micro-batches", "2"),
        ("--remat", "layer"),
        ("--train", "lora"),
        ("--lora-rank", "8"),
        ("--optimizer", "lion"),
    ],
)
def test_options_of_a_step_are_refused_where_there_is_none(capsys, words):
    plan = ["plan", "llama-3.2-1b", "--topology", "v5e:2x2", "--compile", "0", "--task", "score"]
    assert main([*plan, *words]) == 2
    assert f"{words[0]} say how a fine-tuning step" in " ".join(capsys.readouterr().err.split())


def test_a_negative_number_to_compile_is_refused(capsys):
    assert main(["plan", "llama-3.2-1b", "--topology", "v5e:2x2", "--compile", "-1"]) == 2
    assert "--compile is -1; give 0 or more" in capsys.readouterr().err


def test_what_is_told_of_a_mesh_and_of_a_gpus_memory(capsys):
    words = "plan llama-3.1-8b --topology h100:8 --compile 0 --length 4096 --batch"
    assert main([*words.split(), "32"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "more than the 75% of a GPU's memory" in said
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0." in said
    words = "plan gpt-oss-20b --topology v5p:4x4x8 --mesh fsdp=128 --compile 0 --length 1024"
    assert main([*words.split(), "--task", "score", "--batch", "128"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the hidden size of 2880 does not divide over fsdp=128" in said
    assert "such as data=2,fsdp=64" in said
    words = "plan llama-3.2-1b --topology h100:8 --compile 0 --mesh context=8 --length 1050"
    assert main(words.split()) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "too short to be split over context" in said and "give --length 4081" in said


def test_small_numbers_are_told_in_small_units(tmp_path, capsys):
    """A model of 0.1 MiB: nothing of it is 0.00 of anything."""
    (tmp_path / "config.json").write_text((FIXTURE / "config.json").read_text())
    words = ("plan", str(tmp_path), "--topology", "h100:8", "--compile", "0", "--length", "16")
    assert main([*words]) == 0
    said = capsys.readouterr().out
    tables = said[said.index("memory of a device") : said.index("least time")]
    assert "KiB" in tables and not re.findall(r" 0\.0+\b", tables)
    assert "fits:" in said and "fits: 0.00" not in said


def test_the_flags_of_the_nearest_that_fits_are_of_the_same_batch(capsys, tmp_path):
    words = "plan llama-3.1-8b --topology v5e:4x4 --compile 0"
    assert main(words.split()) == 0
    (flags,) = re.findall(r"^ *(--mesh .*)$", capsys.readouterr().out, re.MULTILINE)
    written = tmp_path / "plan.json"
    assert main([*words.split(), *flags.split(), "--json", str(written)]) == 0
    found = json.loads(written.read_text())
    assert found["fits"] and found["batch"] == 16


def test_a_folder_that_is_not_there_is_told_before_anything_is_compiled(capsys, tmp_path):
    words = "plan llama-3.1-8b --topology v5e:4x4 --json"
    assert main([*words.split(), str(tmp_path / "no" / "plan.json")]) == 2
    assert "plan.json: its folder is not there" in capsys.readouterr().err
