"""How many rows a data file has, where that is cheap to know: for the time left."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from instructjax.data.files import find_extension, find_files

COUNT_BYTES = 1 << 30


def estimate_rows(path: Path) -> int | None:
    """Rows of a file, or of all files in a folder; None where only reading them would tell.

    Parquet files know it. Lines are counted in .jsonl, .csv and .tsv files that together have
    less than a gigabyte; blank lines and line ends within CSV cells make it a little too many.
    """
    files = find_files(path)
    if any(file.name.lower().endswith((".gz", ".json")) for file in files):
        return None
    lines = [file for file in files if find_extension(file) not in (".parquet", ".pq")]
    try:
        if sum(file.stat().st_size for file in lines) > COUNT_BYTES:
            return None
        rows = sum(map(_count_lines, lines))
        return rows + sum(pq.read_metadata(f).num_rows for f in files if f not in lines)
    except (OSError, ValueError):
        return None


def _count_lines(file: Path) -> int:
    count, last = 0, b"\n"
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            count += block.count(b"\n")
            last = block[-1:]
    header = find_extension(file) in (".csv", ".tsv")
    return count + (last != b"\n") - header
