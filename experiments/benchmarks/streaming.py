"""What one more row costs a run of `instructjax score`, and how long the device waits for the host.

    python experiments/benchmarks/streaming.py --out streaming.json
    python experiments/benchmarks/streaming.py --full     # up to 10^6 rows: a quarter of an hour

A tiny model with random weights scores files of 10^3 rows and more, each in a process of its own:
the time a row, and the memory that stays resident, must not depend on how many there are. Then
the embedded model scores a few hundred rows: the share of the time in which the device waited.
Everything counts from the moment the model is loaded to the finished table; processor time, of all
threads together, is there because other programs on the machine do not change it much.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from device_clock import DeviceClock
from made_up import make_model, write_rows
from rich.console import Console
from rich.table import Table
from written import write_report

WARM_ROWS = 5_000


def resident_mb() -> float:
    """Memory of this process that is in RAM now."""
    with open("/proc/self/statm") as stream:
        return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Resident:
    """Resident memory while the block runs, looked at every 50 ms."""

    def __enter__(self) -> Resident:
        self.megabytes, self._stop = [resident_mb()], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.megabytes.append(resident_mb())

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        self._thread.join()

    def quarters(self) -> list[float]:
        """The largest of each quarter of the time."""
        count = len(self.megabytes)
        cuts = [count * i // 4 for i in range(5)]
        return [max(self.megabytes[a : max(b, a + 1)]) for a, b in itertools.pairwise(cuts)]


def run_child(model: str, warm: Path, data: Path, out: Path) -> None:
    """Scores `warm`, so that programs are compiled, then `data`; says what that took, as JSON."""
    from instructjax.cli import score_run
    from instructjax.cli.main import main
    from instructjax.models import load_model

    loaded = load_model(model)
    score_run.load_model = lambda spec, **options: loaded
    for source in (warm, data):
        target = out.with_name(f"{source.stem}.parquet")
        with Resident() as resident, DeviceClock() as clock:
            start, cpu = time.perf_counter(), time.process_time()
            command = ["score", str(source), "--out", str(target), "--model", model]
            code = main([*command, "--overwrite"])
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        if code:
            raise SystemExit(code)
    result = {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "waiting_share": 1 - clock.busy / seconds,
        "peak_mb": max(resident.megabytes),
        "quarters_mb": resident.quarters(),
        "final_mb": resident_mb(),
        "table_mb": target.stat().st_size / 1e6,
    }
    print("RESULT " + json.dumps(result), file=sys.stderr)


def measure(model: str, warm: Path, data: Path, folder: Path) -> dict[str, Any]:
    """Runs `run_child` in a fresh process."""
    command = [sys.executable, __file__, "--child", model, str(warm), str(data), str(folder / "o")]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [x for x in done.stderr.splitlines() if x.startswith("RESULT ")]
    if done.returncode or not lines:
        raise SystemExit(f"the run failed:\n{done.stderr[-2000:]}")
    print(done.stdout, file=sys.stderr)
    return json.loads(lines[-1].removeprefix("RESULT "))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    sizes = [1_000, 10_000, 100_000]
    parser.add_argument("--sizes", type=int, nargs="*", default=sizes, help="rows of the tiny runs")
    parser.add_argument("--full", action="store_true", help="go up to a million rows")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="of the last run")
    parser.add_argument("--data", type=Path, help="its rows; by default made up")
    parser.add_argument("--rows", type=int, default=300, help="how many are made up; 0 for no run")
    parser.add_argument(
        "--out", type=Path, default="streaming.json", help="JSON file to write, and .md beside it"
    )
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        model, warm, data, out = args.child
        return run_child(model, Path(warm), Path(data), Path(out))

    table = Table(title="instructjax score, from the loaded model to the finished table")
    names = ("rows", "seconds", "ms a row", "CPU ms", "waits", "peak MB by quarter", "final MB")
    for name in ("model", *names):
        table.add_column(name, justify="left" if name == "model" else "right")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "tiny")
        jobs = []
        for count in [*args.sizes, *([1_000_000] if args.full else [])]:
            data = folder / f"rows{count}.jsonl"
            write_rows(data, count)
            jobs.append(("tiny", str(folder / "tiny"), data, count))
        if args.rows or args.data:
            data = args.data or folder / "long.jsonl"
            if not args.data:
                write_rows(data, args.rows, median=30)
            count = sum(1 for _ in data.open())
            jobs.append((args.model, args.model, data, count))
        for label, model, data, count in jobs:
            warm = folder / "warm.jsonl"
            with data.open() as lines:
                warm.write_text("".join(itertools.islice(lines, WARM_ROWS)))
            result = {"model": label, "rows": count, **measure(model, warm, data, folder)}
            results.append(result)
            table.add_row(
                label,
                f"{count:,}",
                f"{result['seconds']:.1f}",
                f"{1e3 * result['seconds'] / count:.3f}",
                f"{1e3 * result['cpu_seconds'] / count:.3f}",
                f"{result['waiting_share']:.1%}",
                " ".join(f"{mb:.0f}" for mb in result["quarters_mb"]),
                f"{result['final_mb']:,.0f}",
            )
    Console().print(table)
    report = {"cores": os.cpu_count(), "runs": results}
    note = (
        "`waits`: share of the time in which the device waited for the host. `peak MB by quarter`: "
        "the largest resident memory in each quarter of the time."
    )
    write_report(args.out, report, "The cost of a row, streamed", [table, note])


if __name__ == "__main__":
    main()
