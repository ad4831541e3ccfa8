"""The table of families: what is read and written, and how far the numbers are from PyTorch's.

    python experiments/family_parity.py                        # runs the tests first
    python experiments/family_parity.py --keep FOLDER          # and goes on if interrupted
    python experiments/family_parity.py --results a.xml b.xml  # from results that pytest wrote
    python experiments/family_parity.py --lines                # only the lengths of files, anew

Every cell comes from a test: differences from `tests/models/test_family_parity.py` (golden numbers
of transformers on PyTorch, float32; no torch needed) and, where torch is installed, from
`tests/scoring/test_torch_live.py`; export (also of what was trained, merged and as an adapter) and
GGUF from the tests of those that ran and passed.
Exit code 1 if a test failed, or there is no test of a family in any column.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from instructjax.models.checkpoints.hf_folder import open_folder
from instructjax.models.config import DecoderConfig, RopeConfig
from instructjax.models.families import FAMILIES, Family

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT / "tests" / "fixtures"
README = ROOT / "README.md"
TABLE = ROOT / "experiments" / "results" / "family_parity.md"
GOLDEN, LIVE = "tests.models.test_family_parity", "tests.scoring.test_torch_live"
TRAINED = "tests.finetuning.test_families_torch_live"
EXPORT = ("tests.models.test_export", "tests.models.test_export_torch_live", TRAINED)
GGUF = ("tests.models.test_gguf_families", "tests.models.test_llama_cpp_live")
# The longest golden text, in tokens.
LONGEST = 97
# llama.cpp has no architecture for these.
NO_GGUF = ("ministral",)
MEASURED = ("log_prob_difference", "gradient_difference")
HEAD = (
    "family",
    "configurations",
    "log-prob, golden",
    "log-prob, live",
    "gradient, golden",
    "gradient, live",
    "import",
    "export",
    "GGUF",
    "file (without what families share)",
)
SHARED = "`hf_config.py`, `hf_tensors.py`, `rope.py`, `gguf_*.py` and `to_hf*.py`"
MARK = "<!-- families -->\n"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One test: its module, what it was given, what it measured, how it ended."""

    module: str
    argument: str
    measured: dict[str, float]
    outcome: str

    @property
    def failed(self) -> bool:
        """Whether it ran and did not pass."""
        return self.outcome in ("failure", "error")


def run_tests(folder: Path) -> list[Path]:
    """Runs the tests that the table is made of, a file at a time; returns their results.

    Files all of whose tests passed, with results in the folder, are not run again.
    """
    files = {"tests/models/test_family_parity.py": "not torch"}
    for pattern in ("export*", "gguf_families*", "llama_cpp_live*"):
        for file in sorted(ROOT.glob(f"tests/models/test_{pattern}.py")):
            live = file.name.endswith("_torch_live.py")
            files[str(file.relative_to(ROOT))] = "torch" if live else "not torch"
    files["tests/finetuning/test_families_torch_live.py"] = "torch"
    files["tests/scoring/test_torch_live.py"] = "torch"
    if importlib.util.find_spec("torch") is None:
        files = {file: marks for file, marks in files.items() if marks != "torch"}
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for file, marks in files.items():
        results.append(folder / f"{Path(file).stem}.xml")
        if results[-1].exists():
            continue
        part = results[-1].with_suffix(".part")  # pytest writes it too when it is interrupted
        command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-m", marks, file]
        command += ["-o", "junit_family=xunit1"]  # which keeps what a test measured
        done = subprocess.run([*command, f"--junitxml={part}"], cwd=ROOT, check=False)
        if done.returncode not in (0, 1):  # all passed; some failed
            raise SystemExit(f"{file}: pytest ended with {done.returncode}")
        if done.returncode == 0:
            part.rename(results[-1])
        else:  # to be run again
            results[-1] = part
    return results


def read_cases(files: Sequence[Path]) -> Iterator[Case]:
    """Every test of the results, in order."""
    for file in files:
        for case in ElementTree.parse(file).getroot().iter("testcase"):
            given = re.search(r"\[(.*)\]", case.get("name", ""))
            numbers = [p for p in case.iter("property") if p.get("name") in MEASURED]
            ended = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
            yield Case(
                module=case.get("classname", ""),
                argument=given.group(1) if given else "",
                measured={p.get("name", ""): float(p.get("value", "nan")) for p in numbers},
                outcome=ended[0] if ended else "passed",
            )


def find_fixtures() -> dict[str, str]:
    """The model_type of every fixture's folder, by its name."""
    files = [*FIXTURES.glob("*/config.json"), *FIXTURES.glob("families/*/config.json")]
    return {f.parent.name: json.loads(f.read_text())["model_type"] for f in files}


def belongs(case: Case, family: Family, fixtures: dict[str, str]) -> bool:
    """Whether a test was of that family: it was given its name, or a fixture of it."""
    name = case.argument.rsplit("/", 1)[-1].partition(",")[0]
    if case.module == LIVE and name not in {f.model_type for f in FAMILIES}:
        return family.model_type == "llama" and bool(case.measured or case.failed)
    return name == family.model_type or fixtures.get(name) == family.model_type


def worst(cases: list[Case], module: str, what: str) -> str:
    """The largest difference; one that fails a test may not have been measured."""
    if any(case.failed for case in cases if case.module == module):
        return "FAILED"
    values = [c.measured[what] for c in cases if c.module == module and what in c.measured]
    return f"{max(values):.1e}" if values else "not run"


def outcome(cases: list[Case]) -> str:
    """How many tests passed, or that one did not."""
    ended = [case.outcome for case in cases if case.outcome != "skipped"]
    if any(end != "passed" for end in ended):
        return "FAILED"
    return f"yes ({len(ended)} tests)" if ended else "no"


def fixtures_of(family: Family) -> list[str]:
    """The configurations that golden numbers are of."""
    files = FIXTURES.glob("families/*/expected.json")
    known = find_fixtures()
    return sorted(f.parent.name for f in files if known[f.parent.name] == family.model_type)


def count_lines(family: Family) -> str:
    """The file that defines a family, and its length."""
    name = next(
        file
        for file in sorted((ROOT / "instructjax" / "models" / "families").glob("*.py"))
        if f'model_type="{family.model_type}"' in file.read_text()
    )
    return f"`{name.name}`, {len(name.read_text().splitlines())} lines"


def row_of(family: Family, every: list[Case], fixtures: dict[str, str]) -> list[str]:
    """A family's row."""
    cases = [case for case in every if belongs(case, family, fixtures)]
    golden = [case for case in cases if case.module == GOLDEN]
    live = {case.argument for case in cases if case.module == LIVE and case.measured}
    names = sorted(
        {case.argument for case in golden if case.argument in fixtures and case.measured}
    )
    stored = {stored_type(name) for name in names}
    gguf = [case for case in cases if case.module in GGUF]
    return [
        f"`{family.model_type}`",
        f"{', '.join(names)}; {len(live)} live" if live else ", ".join(names),
        worst(cases, GOLDEN, "log_prob_difference"),
        worst(cases, LIVE, "log_prob_difference"),
        worst(cases, GOLDEN, "gradient_difference"),
        worst(cases, LIVE, "gradient_difference"),
        ": ".join(filter(None, [outcome(golden), ", ".join(sorted(stored))])),
        outcome([case for case in cases if case.module in EXPORT]),
        "not in llama.cpp" if family.model_type in NO_GGUF else outcome(gguf),
        count_lines(family),
    ]


def find_gaps(rows: Sequence[Sequence[str]]) -> list[str]:
    """The cells that no test stands behind, or one that failed, by family and column."""
    empty = ("not run", "no", "FAILED", "")
    return [
        f"{row[0]}: {column}: {cell or 'nothing'}"
        for row in rows
        for column, cell in zip(HEAD, row, strict=True)
        if cell in empty
    ]


def describe(config: DecoderConfig) -> str:
    """What a configuration has of what conversions get wrong."""
    ropes = [config.rope, *(kind.rope for kind in config.layers)]
    ropes = [] if config.learned_positions else ropes
    windows = {kind.window for kind in config.layers if kind.window and kind.window < LONGEST}
    biased = config.attention_bias or config.mlp_bias or config.norm_bias or config.expert_bias
    heads = f"{config.num_heads} heads"
    if config.num_kv_heads < config.num_heads:
        heads += f" on {config.num_kv_heads}"
    return ", ".join(
        [
            "tied" if config.tie_embeddings else "untied",
            heads,
            *(f"window {window}" for window in sorted(windows)),
            *dict.fromkeys(_stretch(rope) for rope in ropes if rope.kind != "default"),
            *(["learned positions"] if config.learned_positions else []),
            *(["biases"] if biased else []),
        ]
    )


def _stretch(rope: RopeConfig) -> str:
    if rope.kind == "none":
        return "layers without positions"
    if rope.kind == "linear":
        return f"linear RoPE, {rope.factor:g} x"
    past = rope.original_max_positions < LONGEST
    return f"{rope.kind} RoPE{f' past {rope.original_max_positions}' if past else ''}"


def stored_type(name: str) -> str:
    """What most of a fixture's numbers are stored as, by its file."""
    kind = open_folder(FIXTURES / "families" / name)[2].kind
    return "float8" if kind.startswith("F8_") else kind


def write_table(rows: list[list[str]]) -> str:
    """The table as Markdown."""
    lines = [
        "# Families: parity with transformers on PyTorch, float32",
        "",
        "Written by `experiments/family_parity.py` from the results of the tests. Differences are",
        "the largest of any token's log-prob, in nats, and of any gradient of the mean log-prob,",
        "relative to the largest entry of its tensor. Golden: against stored numbers, as CI tests",
        "them without torch, compiled without LLVM's optimizations. Live: random models made in",
        "PyTorch on the spot, the first of each family compiled as for users. A file's lines are",
        f"not all that a family needs: {SHARED} are for all of them.",
        "GGUF: files of llama.cpp's converter have the parameters of the folder, and, where",
        "llama-cpp-python is installed, our log-probs are llama.cpp's; CI does not install it.",
        "The last token of a request is predicted, not computed: where the length decides the",
        "frequencies (dynamic RoPE, LongRoPE), it is that of `model(ids[:-1])`, one less than of",
        "`model(ids)`, whose earlier logits are others past the original context.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "| " + " | ".join("---" for _ in HEAD) + " |",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
        *describe_all([row[1] for row in rows]),
    ]
    return "\n".join(lines)


def describe_all(cells: Sequence[str]) -> list[str]:
    """The lines that say what the configurations have, which the cells name."""
    names = [name for cell in cells for name in filter(None, cell.partition(";")[0].split(", "))]
    return [
        f"The configurations, with texts of up to {LONGEST} tokens:",
        "",
        "| configuration | has |",
        "| --- | --- |",
        *(
            f"| {name} | {describe(open_folder(FIXTURES / 'families' / name)[1])} |"
            for name in names
            if (FIXTURES / "families" / name).is_dir()
        ),
        "",
    ]


def read_rows(table: str) -> dict[str, dict[str, str]]:
    """The rows of a table that was written, by `model_type`, and their cells by what heads them."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    return {cells[0].strip("`"): dict(zip(HEAD, cells, strict=True)) for cells in lines}


def recount_lines(table: str) -> str:
    """A table with the lengths of files as they are now."""
    for family in FAMILIES:
        row = read_rows(table)[family.model_type]
        old = " | ".join(row.values())
        table = table.replace(old, " | ".join({**row, HEAD[-1]: count_lines(family)}.values()))
    return table


def summarize(table: str) -> str:
    """The largest differences of all rows of a table, as a line for the README."""
    rows = read_rows(table).values()

    def largest(column: str) -> str:
        return max((row[column] for row in rows), key=_as_number)

    return (
        f"{len(rows)} families, largest difference from PyTorch of a token's log-prob "
        f"{largest('log-prob, golden')} nats (random models: {largest('log-prob, live')}), of a "
        f"gradient {largest('gradient, golden')} ({largest('gradient, live')}) of the largest in "
        f"its tensor: [by family](experiments/results/family_parity.md); three real models beside "
        f"llama.cpp and transformers: [table](experiments/results/real_models.md)."
    )


def _as_number(cell: str) -> float:
    """A cell that has no number comes before all others."""
    return float(cell) if re.fullmatch(r"[\d.]+e[+-]\d+", cell) else float("inf")


def write_summary(table: str) -> None:
    """The line of the README that stands after its mark."""
    before, _, after = README.read_text().partition(MARK)
    if after:
        text = wrap(summarize(table))
        README.write_text(before + MARK + text + "\n" + after[after.index("\n\n") + 1 :])


def wrap(text: str) -> str:
    """Lines of the README's width."""
    return textwrap.fill(text, 104, break_long_words=False, break_on_hyphens=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--results", nargs="+", type=Path, help="JUnit files that pytest wrote")
    parser.add_argument("--keep", type=Path, help="a folder of results, to go on where it was")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--lines", action="store_true", help="only the lengths of files, anew")
    options = parser.parse_args()
    if options.lines:
        options.out.write_text(recount_lines(options.out.read_text()))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        cases = list(read_cases(options.results or run_tests(options.keep or Path(folder))))
    fixtures = find_fixtures()
    rows = [row_of(family, cases, fixtures) for family in FAMILIES]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(write_table(rows))
    if options.out == TABLE:
        write_summary(options.out.read_text())
    print(options.out.read_text())
    gaps = [*find_gaps(rows), *(f"{c.module}[{c.argument}] failed" for c in cases if c.failed)]
    print("\n".join(gaps))
    return int(bool(gaps))


if __name__ == "__main__":
    sys.exit(main())
