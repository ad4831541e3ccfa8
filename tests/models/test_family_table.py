"""The script that writes the table of families: a test that failed shows in its cell."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from instructjax.models.families import FAMILIES

SCRIPT = Path(__file__).parents[2] / "experiments" / "family_parity.py"


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
