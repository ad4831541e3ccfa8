"""How soon do the others stop when one of several processes is lost? The fault tests, timed.

    python experiments/fault_times.py --out experiments/results/fault_times.json

Runs `tests/sharding/test_processes_faults.py`, which kills, stops and hangs processes on this
machine, and lists for each test the seconds from the fault to the end of the others. About ten
minutes. Exit code 1 if a test failed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
TESTS = "tests/sharding/test_processes_faults.py"
# What a test does to a process, and by when the others are to have stopped.
FAULTS = {
    "test_a_killed_process_ends_the_others_at_once": ("killed, or told to end", "10 s"),
    "test_a_killed_process_ends_the_others_while_they_start": (
        "killed while they start",
        "10 s",
    ),
    "test_a_stopped_process_does_not_hold_the_others_for_ever": (
        "stopped: it lives and says nothing, with `--lost-after 5`",
        "15 s",
    ),
    "test_a_process_that_hangs_in_python": (
        "hangs: it says that it lives and does nothing, with `--stalled-after 60`",
        "80 s",
    ),
    "test_a_run_that_hangs_ends_when_it_is_told_to": (
        "hangs in `finetune`, and one is told to stop, with `--lost-after 2`",
        "20 s",
    ),
    "test_a_process_that_does_not_come": (
        "does not come, with `--join-timeout 6`; from the start of the others",
        "60 s",
    ),
    "test_a_full_disk_stops_all": ("cannot write the table", "10 s"),
    "test_a_checkpoint_that_cannot_be_written_stops_all": ("cannot write a checkpoint", "15 s"),
}


def run_tests(results: Path) -> bool:
    """Runs the tests one after the other; whether all passed."""
    words = ["-q", "-n", "0", "-m", "slow", "-o", "junit_family=xunit1", f"--junitxml={results}"]
    run = [sys.executable, "-m", "pytest", *words, TESTS]
    return subprocess.run(run, cwd=ROOT).returncode == 0


def read_seconds(results: Path) -> dict[str, list[float]]:
    """Seconds that each test noted, of all its parameters."""
    seconds: dict[str, list[float]] = {}
    for case in ElementTree.parse(results).iter("testcase"):
        found = [x.get("value") for x in case.iter("property") if x.get("name") == "seconds"]
        name = (case.get("name") or "").partition("[")[0]
        seconds.setdefault(name, []).extend(float(value or "nan") for value in found)
    return seconds


def _seconds(value: float) -> str:
    return f"{max(value, 0.0):.1f}"  # the others may end a moment before the one with the fault


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write, and a table beside it (.md)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.xml"
        passed = run_tests(results)
        seconds = read_seconds(results)
    head = ("one process", "ends of others", "seconds", "the test's limit")
    rows = [
        (what, f"{len(times)}", f"{_seconds(min(times))} to {_seconds(max(times))}", limit)
        for name, (what, limit) in FAULTS.items()
        if (times := seconds.get(name))
    ]
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    if args.out:
        args.out.write_text(json.dumps(seconds, indent=1) + "\n")
        lines = "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 4, *rows))
        args.out.with_suffix(".md").write_text(
            f"# From a fault in one process to the end of the others\n\n{lines}\n\n"
            "Two or three processes of one machine, CPU only; made by "
            "`experiments/fault_times.py`.\n"
        )
    return 0 if passed and len(rows) == len(FAULTS) else 1


if __name__ == "__main__":
    sys.exit(main())
