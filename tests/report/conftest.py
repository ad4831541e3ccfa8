"""Made-up results that have all there is to show, with texts that try to be more than text."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from instructjax.generalization.split_recipes import CELLS
from instructjax.report.page import Page, make_page
from instructjax.report.results import Results, SourceFile, make_results
from instructjax.scoring.tables.table import SCHEMA, schema_with

EVIL = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> & {{ 7 * 7 }} `$x$` | \\input{a} "
    "\u202egnisrever\u0007 \u05d0\u05d1\u05d2 _*#% http://example.com "
)


def make_rows(models: tuple[str, ...] = ("tuned", "base")) -> list[dict[str, Any]]:
    """4 tasks of 6 wordings on 10 inputs; new wordings are much harder for "tuned"."""
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 0.02, (4, 6, 10))
    rows = []
    for model in models:
        for t in range(4):
            for c in range(6):
                for z in range(10):
                    k = 2 * (c >= 3) + (z >= 5)
                    value = 0.8 - (0.4 if model == "tuned" else 0.0) * (c >= 3) + hard[t, c, z]
                    value += 0.01 * rng.standard_normal() + 0.01 * t
                    rows.append(
                        {
                            "model": model,
                            "id": f"{t}-{c}-{z}",
                            "metric": "rouge_l",
                            "value": float(np.clip(value, 0, 1)),
                            "task": f"task {t}",
                            "cell": CELLS[k],
                            "instruction_hash": f"c{t}-{c}",
                            "input_hash": f"z{t}-{z}",
                            "status": "ok",
                        }
                    )
    return rows


def make_scores() -> pa.Table:
    """Two responses in four contexts."""
    records = []
    for id in ("0-0-0", "1-4-6"):
        for k, context in enumerate(("cz", "c", "z", "none")):
            log_probs = [-0.5 - k, -1.0 - 0.5 * k, -0.25]
            records.append(
                dict.fromkeys(SCHEMA.names)
                | {"id": id, "candidate": 0, "context": context, "status": "ok", "greedy": True}
                | {"log_prob": sum(log_probs), "num_tokens": 3, "num_bytes": 9}
                | {"log_prob_per_token": sum(log_probs) / 3, "token_ids": [1, 2, 3]}
                | {"token_log_probs": log_probs}
            )
    return pa.Table.from_pylist(records, schema=schema_with({"model": "tiny"}))


@pytest.fixture(scope="session")
def results() -> Results:
    """All of it, with texts that must stay text."""
    leak = {"side": "input", "kinds": [EVIL], "cover_8": 1.0, "similarity": 1.0, "id": EVIL}
    leak |= {"train_id": "b", "text": EVIL * 50, "train_text": EVIL}
    side = {"compared": 5, "leaked": 1, "kinds": {}}
    return make_results(
        make_rows(("tuned", "base")),
        scores=[make_scores()],
        split={
            "recipe": {"by": "paraphrase", "seed": 0},
            "fingerprint": "abc",
            "leaks": {"action": "report", "input": side, "instruction": side},
        },
        leaks=[leak],
        texts={f"c{t}-{c}": f"{EVIL}{t}{c}" for t in range(4) for c in range(6)}
        | {f"z{t}-{z}": "x" * 100_000 for t in range(4) for z in range(10)},
        files=[SourceFile(name=EVIL, sha256="0" * 64, metadata={EVIL: EVIL})],
    )


@pytest.fixture(scope="session")
def page(results: Results) -> Page:
    """A page of them."""
    spell = lambda ids: [f"{EVIL}{id}" for id in ids]  # noqa: E731
    return make_page(results, title=EVIL, command=f"instructjax report {EVIL}", spell=spell)


@pytest.fixture(scope="session")
def evil() -> str:
    """A text that tries to be more than text."""
    return EVIL


@pytest.fixture(scope="session")
def tuned_rows() -> list[dict[str, Any]]:
    """Rows of one model."""
    return make_rows(("tuned",))


@pytest.fixture(scope="session")
def score_table() -> pa.Table:
    """A score table of two responses in four contexts."""
    return make_scores()
