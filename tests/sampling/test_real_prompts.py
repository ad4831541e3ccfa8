"""Greedy text of the embedded model is that of transformers `generate`, prompt by prompt."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "experiments" / "sampling_parity.py"
INSTRUCTIONS = (
    "Summarize the text in one sentence.",
    "Is the tone of the text positive or negative? Answer with one word.",
    "List the nouns of the text.",
    "Translate the text into French.",
    "Explain the text to a child.",
    "Write a title for the text.",
    "Ask a question that the text answers.",
    "Continue the text.",
    "Rewrite the text as a formal letter.",
    "What happens first in the text?",
)
INPUTS = (
    "The tenant shall pay the rent on the first day of each month; a payment that is more than ten "
    "days late bears interest of two percent a month.",
    "We waited an hour for a table, and the soup was cold. The waiter was kind, though, and the "
    "cake at the end made up for most of it.",
    "Water that is heated in an open pot boils at a lower temperature on a mountain than by the "
    "sea, since the air above it presses less.",
    "Ada put the letter back into the drawer, locked it, and told nobody. Years later her brother "
    "found the key in a coat that he was about to give away.",
    "def mean(values):\n    return sum(values) / len(values)",
)


@pytest.mark.slow
@pytest.mark.registry
@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
def test_fifty_texts_of_64_tokens_are_those_of_generate(tmp_path: Path) -> None:
    """Where the best two logits of PyTorch are within 1e-4, either is right."""
    file, out = tmp_path / "rows.jsonl", tmp_path / "parity.json"
    rows = [{"instruction": c, "input": z} for c, z in itertools.product(INSTRUCTIONS, INPUTS)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(file), "--prompts", "50", "--out", str(out)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    assert found["same"] + found["tie"] == found["prompts"] == 50
    assert found["tie"] <= 2 and found["tokens_compared"] > 500
