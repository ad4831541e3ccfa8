"""The table of families and the script that writes it: cells are what tests and files say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from instructjax.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "family_parity.py"
FILES = ROOT / "instructjax" / "models" / "families"

# A golden configuration of each family.
FIXTURE = {
    json.loads((folder / "config.json").read_text())["model_type"]: folder.name
    for folder in sorted((ROOT / "tests" / "fixtures" / "families").iterdir())
}


@pytest.fixture
def table(monkeypatch):
    spec = importlib.util.spec_from_file_location("family_parity", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "family_parity", module)
    spec.loader.exec_module(module)
    return module


def test_what_failed_before_it_was_measured_is_not_passed_over(table):
    def case(argument, outcome="passed", **measured):
        return table.Case(module=table.LIVE, argument=argument, measured=measured, outcome=outcome)

    cases = [
        case("gemma2", "failure"),
        case("gemma2, other head and biases", log_prob_difference=1e-6),
        case("qwen2", log_prob_difference=2e-6),
        case("one of Llama's own", "error"),
    ]
    rows = {family.model_type: table.row_of(family, cases, {}) for family in FAMILIES}
    at = table.HEAD.index("log-prob, live")
    assert rows["gemma2"][at] == rows["llama"][at] == "FAILED"
    assert rows["qwen2"][at] == "2.0e-06" and rows["gpt2"][at] == "not run"


def write_results(file, left_out=()):
    """Results as pytest writes them, a test a family in each module but those left out."""
    measured = "".join(
        f'<property name="{name}" value="1e-6"/>'
        for name in ("log_prob_difference", "gradient_difference")
    )
    modules = {
        "tests.models.test_family_parity": FIXTURE,
        "tests.scoring.test_torch_live": {f.model_type: f.model_type for f in FAMILIES},
        "tests.models.test_export": FIXTURE,
        "tests.models.test_gguf_families": {f.model_type: f.model_type for f in FAMILIES},
    }
    cases = "".join(
        f'<testcase classname="{module}" name="test[{names[family.model_type]}]">'
        f"<properties>{measured}</properties></testcase>"
        for module, names in modules.items()
        for family in FAMILIES
        if (module, family.model_type) not in left_out
    )
    file.write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")


def run(table, monkeypatch, tmp_path, left_out=()):
    results = tmp_path / "results.xml"
    write_results(results, left_out)
    given = ["family_parity.py", "--results", str(results), "--out", str(tmp_path / "table.md")]
    monkeypatch.setattr(sys, "argv", given)
    return table.main()


@pytest.mark.parametrize(
    ("module", "family", "column"),
    [
        ("tests.models.test_family_parity", "gpt2", "import"),
        ("tests.scoring.test_torch_live", "qwen3", "log-prob, live"),
        ("tests.models.test_export", "granite", "export"),
        ("tests.models.test_gguf_families", "olmo2", "GGUF"),
        ("tests.models.test_gguf_families", "ministral", None),  # which llama.cpp does not have
    ],
)
def test_a_family_that_a_column_has_no_test_of_ends_with_1(
    table, monkeypatch, tmp_path, capsys, module, family, column
):
    assert run(table, monkeypatch, tmp_path) == 0
    capsys.readouterr()
    assert run(table, monkeypatch, tmp_path, [(module, family)]) == int(column is not None)
    said = capsys.readouterr().out
    assert (f"`{family}`: {column}" in said) == (column is not None)
    rows = table.read_rows((tmp_path / "table.md").read_text())
    if column == "import":  # nothing was read, of whatever type
        assert rows[family]["import"] == "no"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "smollm3-window-bias",
            "untied, 4 heads on 2, window 8, layers without positions, biases",
        ),
        ("llama-past-yarn", "tied, 2 heads on 1, yarn RoPE past 32"),
        ("gpt2", "tied, 4 heads, learned positions, biases"),
        ("gemma3", "tied, 4 heads on 2, window 8, linear RoPE, 8 x"),
    ],
)
def test_what_a_configuration_has_is_told(table, name, words):
    assert table.describe(table.open_folder(table.FIXTURES / "families" / name)[1]) == words


def test_the_summary_has_the_largest_of_each_column(table):
    def row(name, *numbers):
        return f"| `{name}` | some | {' | '.join(numbers)} | yes | yes | no | file |"

    rows = [
        row("one", "1.0e-06", "2.0e-05", "3.0e-06", "9.9e-06"),
        row("two", "9.0e-07", "not run", "FAILED", "1.1e-05"),
    ]
    words = table.summarize("\n".join(["| family |", *rows]))
    assert "2 families" in words and "log-prob 1.0e-06 nats (random models: not run)" in words
    assert "gradient FAILED (1.1e-05)" in words


def test_the_committed_table_is_of_the_files_that_are_there(table):
    """All that does not need a run of the tests: families, configurations, types, lines."""
    text = table.TABLE.read_text()
    rows = table.read_rows(text)
    assert list(rows) == [family.model_type for family in FAMILIES]
    for family in FAMILIES:
        row = rows[family.model_type]
        names = row["configurations"].partition(";")[0].split(", ")
        assert names == table.fixtures_of(family), family.model_type
        types = row["import"].partition(": ")[2].split(", ")
        assert types == sorted({table.stored_type(name) for name in names}), family.model_type
        again = "python experiments/family_parity.py --lines writes it anew"
        file, length, _ = row[table.HEAD[-1]].replace("`", "").replace(",", "").split()
        assert int(length) == (FILES / file).read_bytes().count(b"\n"), again
    described = table.describe_all([row["configurations"] for row in rows.values()])
    assert text.endswith("\n".join(described))
    readme = table.README.read_text().partition(table.MARK)[2]
    assert " ".join(readme.partition("\n\n")[0].split()) == table.summarize(text)


@pytest.mark.parametrize(
    ("name", "kind"), [("qwen3-fp8", "F8_E4M3"), ("gpt-oss-mxfp4", "U8"), ("olmo2", "BF16")]
)
def test_the_types_are_those_in_the_files(table, name, kind):
    folder = table.FIXTURES / "families" / name
    with safe_open(folder / "model.safetensors", "numpy") as opened:
        kinds = {opened.get_slice(key).get_dtype() for key in opened.keys()}  # noqa: SIM118
    assert kind in kinds
    wanted = {"F8_E4M3": "float8", "U8": "MXFP4", "BF16": "BF16"}[kind]
    assert table.stored_type(name) == wanted


def test_lengths_alone_are_counted_anew(table):
    text = table.TABLE.read_text()
    wrong = re.sub(r"(`\w+\.py`), \d+ lines", r"\1, 3 lines", text)
    assert wrong != text and table.recount_lines(wrong) == text
