"""`instructjax demo`: one response, seen from all sides."""

from __future__ import annotations

import math
import sys

import jax
from rich.console import Console
from rich.table import Table
from rich.text import Text

from instructjax.cli.demo import Demo
from instructjax.cli.messages import escape_controls
from instructjax.data.example import Example
from instructjax.display.tokens import TokenLine, render_legend
from instructjax.models import load_model
from instructjax.scoring.api import score
from instructjax.scoring.result import Scores
from instructjax.scoring.rows import ScoredRow

INSTRUCTION = "Summarize the key point of the following text."
INPUT = "Jupiter is the fifth planet from the Sun and the largest in the Solar System."
RESPONSE = "Jupiter is the largest planet in our solar system."
OTHERS = {
    "The largest planet in our solar system is Jupiter.": "paraphrase",
    "Jupiter is the smallest planet in our solar system.": "wrong",
    "Bread is made from flour, water, salt and yeast.": "unrelated",
}

_HELD = {"cz": "c and z", "z": "z, no instruction", "c": "c, no input", "none": "neither"}


def run_demo(options: Demo, console: Console | None = None) -> int:
    """Prints the demo, on standard output or a console given; returns the exit code."""
    print(f"loading {escape_controls(options.model)} ...", file=sys.stderr, flush=True)
    model = load_model(options.model, dtype=options.dtype)
    responses = {RESPONSE: "as above", **OTHERS}
    example = Example(instruction=INSTRUCTION, input=INPUT, output=list(responses))
    scores = score(model, example, contexts=tuple(_HELD), progress=False)

    console = console or Console(highlight=False)
    _print_example(console, model.name, f"{model.dtype} on {jax.default_backend()}")
    _print_tokens(console, scores)
    _print_contexts(console, {row.context: row for row in scores if row.candidate == 0})
    ranked = [row for row in scores if row.context == "cz"]
    _print_ranking(console, ranked, responses)
    _print_next(console, options.model)
    return 0


def _print_example(console: Console, model: str, arithmetic: str) -> None:
    console.rule(Text(f"{escape_controls(model)}, {arithmetic}"), align="left", style="dim")
    grid = Table.grid(padding=(0, 2))
    grid.add_row(Text("c", style="bold"), "instruction", INSTRUCTION)
    grid.add_row(Text("z", style="bold"), "input", INPUT)
    grid.add_row(Text("y", style="bold"), "response", RESPONSE)
    console.print(grid)


def _print_tokens(console: Console, scores: Scores) -> None:
    row = scores[0]
    console.print()
    console.print(
        Text.assemble(
            "log Pr(y | c, z) = ",
            (f"{row.log_prob:.3f} nats", "bold"),
            f"  ({row.num_tokens} tokens, the end-of-turn token counted)",
        )
    )
    console.print(
        f"Pr = {math.exp(row.log_prob):.3g};  {row.log_prob_per_token:.3f} nats a token;  "
        f"{row.bits_per_byte:.3f} bits a byte",
        style="dim",
    )
    console.print()
    console.print(TokenLine(scores.tokens[0], row.token_log_probs))
    console.print(render_legend(colored=console.color_system is not None and not console.no_color))


def _print_contexts(console: Console, rows: dict[str, ScoredRow]) -> None:
    console.print("\n[bold]What c and z contribute[/]: the same y, the prompt with less in it\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("prompt holds")
    table.add_column("log Pr(y | prompt)", justify="right")
    table.add_column("nats lost", justify="right")
    table.add_column("")
    full = rows["cz"].log_prob
    for context, held in _HELD.items():
        lost = full - rows[context].log_prob
        table.add_row(
            held,
            f"{rows[context].log_prob:.3f}",
            "" if context == "cz" else f"{lost:.3f}",
            "" if context == "cz" else _describe_ratio(lost),
        )
    console.print(table)


def _describe_ratio(lost: float) -> str:
    """How many times less (or more) likely, given a difference of log-probabilities."""
    word = "less" if lost >= 0 else "more"
    digits = math.floor(abs(lost) / math.log(10))
    if digits > 8:
        return f"10^{abs(lost) / math.log(10):.1f} times {word} likely"
    # Two digits: a ratio that swings with every token needs no more.
    return f"{round(math.exp(abs(lost)), 1 - digits):,.{int(digits < 1)}f} times {word} likely"


def _print_ranking(console: Console, rows: list[ScoredRow], kinds: dict[str, str]) -> None:
    """Posterior over the candidates under a uniform prior: softmax of log Pr."""
    console.print("\n[bold]Which response?[/] Pr(y | c, z) of four, and their shares of the sum\n")
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("log Pr", justify="right")
    table.add_column("share", justify="right")
    table.add_column("y")
    table.add_column("")
    best = max(row.log_prob for row in rows)
    total = sum(math.exp(row.log_prob - best) for row in rows)
    texts = list(kinds)
    for row in sorted(rows, key=lambda row: -row.log_prob):
        text = texts[row.candidate]
        table.add_row(
            f"{row.log_prob:.3f}",
            _describe_share(math.exp(row.log_prob - best) / total),
            text,
            Text(kinds[text], style="dim"),
        )
    console.print(table)


def _describe_share(share: float) -> str:
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def _print_next(console: Console, model: str) -> None:
    console.print()
    console.rule(Text("next"), align="left", style="dim")
    chosen = "" if model == Demo.model else f" --model {escape_controls(model)}"
    console.print("score a file of your own, rows like this one:", style="dim")
    row = '{"instruction": "Add.", "input": "1 + 1", "output": ["2", "3"]}'
    console.print(f"  echo '{row}' > rows.jsonl", markup=False, soft_wrap=True)
    console.print(
        f"  instructjax score rows.jsonl --out scores.csv{chosen}", markup=False, soft_wrap=True
    )
    console.print("or in Python:", style="dim")
    console.print("  import instructjax as ij", markup=False)
    console.print(f'  model = ij.load_model("{escape_controls(model)}")', markup=False)
    console.print(
        '  ij.score(model, ij.Example(instruction="Add.", input="1 + 1", output="2"))',
        markup=False,
        soft_wrap=True,
    )
