"""Leaks between the train and test tasks of Super-NaturalInstructions, and between tasks of train.

    python experiments/superni_leaks.py DATA

DATA holds `train/` and `test/`, a .jsonl or .json file a task, all of them or some. Every input,
and every definition, of the test tasks is compared with all of the train tasks, by n-grams of 8 and
13 words and by MinHash. Then the train tasks are compared with each other in the same way: what a
split of them by task would have to look out for.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from instructjax.data import Example, read_examples
from instructjax.generalization.leaks import Leak, find_leaks
from instructjax.generalization.text_store import TextStore

SIDES = ("input", "instruction")


def read_texts(folder: Path, side: str) -> dict[str, set[str]]:
    """The distinct texts of one side, by task."""
    texts: dict[str, set[str]] = defaultdict(set)
    for row in read_examples(folder):
        if isinstance(row, Example):
            texts[row.task or "?"].add(getattr(row, side))
    return texts


def compare(
    new: dict[str, set[str]], known: dict[str, set[str]]
) -> tuple[Counter[tuple[str, str, str]], list[tuple[str, str, Leak]], int, int]:
    """Leaks by pair of tasks and kind; examples; texts that share an 8-gram, a 13-gram."""
    with TextStore() as store:
        owner = [(task, store.add(text)) for task, group in new.items() for text in sorted(group)]
        others = [(t, store.add(text)) for t, group in known.items() for text in sorted(group)]
        task_of = {number: task for task, number in (*owner, *others)}
        found = find_leaks(store, np.array([n for _, n in owner]), np.array([n for _, n in others]))
        pairs = Counter(
            (task_of[leak.text], task_of[leak.source], kind)
            for leak in found.leaks
            for kind in leak.kinds
        )
        shown = [(store[leak.text], store[leak.source], leak) for leak in found.leaks]
    short, long = int((found.cover_short > 0).sum()), int((found.cover_long > 0).sum())
    return pairs, shown, short, long


def show(title: str, new: dict[str, set[str]], known: dict[str, set[str]]) -> None:
    """Prints what was found."""
    pairs, shown, short, long = compare(new, known)
    total = sum(map(len, new.values()))
    print(f"\n{title}: {total:,} distinct texts; {short:,} share an 8-gram, {long:,} a 13-gram")
    if not shown:
        print("no leak")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("unseen", "trained on", "how", "texts"):
        table.add_column(name, justify="right" if name == "texts" else "left", overflow="fold")
    for (task, source, kind), count in pairs.most_common(12):
        table.add_row(task, source, kind, f"{count:,}")
    Console().print(table)
    text, source, leak = max(shown, key=lambda one: one[2].cover_short + one[2].similarity)
    print(f"for example ({', '.join(leak.kinds)}):\n  {text[:200]!r}\n  {source[:200]!r}")


def main(argv: Sequence[str] | None = None) -> None:
    """Compares test with train, and each train task with the others."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    data = parser.parse_args(argv).data
    for side in SIDES:
        train = read_texts(data / "train", side)
        show(f"test {side}s against train", read_texts(data / "test", side), train)
        half = sorted(train)[::2]
        rest = {task: texts for task, texts in train.items() if task not in half}
        title = f"every second train task's {side}s against the other train tasks"
        show(title, {task: train[task] for task in half}, rest)


if __name__ == "__main__":
    main()
