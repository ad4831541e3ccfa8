"""Files that a report is made of: evaluation tables, score tables, and what a split left."""

from __future__ import annotations

import csv
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Float64, Int

from instructjax.errors import DataError, UsageError
from instructjax.evaluation.table import read_evaluation_table, to_columns
from instructjax.generalization.split_recipes import CELLS, SplitRecipe
from instructjax.scoring.tables.reading import read_scores
from instructjax.scoring.tables.table import read_metadata

_TEXTS = ("model", "id", "metric", "task", "category", "cell", "instruction_hash", "input_hash")
_TEXTS += ("instruction_id", "input_id", "status")
_NEEDED = ("model", "id", "metric", "value")
MAX_JSON = 1 << 26


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file that was read: its name, SHA-256, and the metadata it carries."""

    name: str
    sha256: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class Results:
    """All rows of evaluation tables, and what else there is to show.

    Attributes:
      columns: of the evaluation tables, "" where there is no value.
      value: of each row; NaN where there is none.
      cell: 0 to 3 in the order of `CELLS`, -1 where it is not known.
      scores: score tables.
      split, leaks: contents of split.json and leaks.jsonl; None and empty where there are none.
      texts: instructions and inputs by hash, where a split's eval.jsonl gives them.
      files: that were read.
    """

    columns: Mapping[str, np.ndarray]
    value: Float64[np.ndarray, " N"]
    cell: Int[np.ndarray, " N"]
    scores: tuple[pa.Table, ...] = ()
    split: Mapping[str, Any] | None = None
    leaks: tuple[Mapping[str, Any], ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    files: tuple[SourceFile, ...] = ()

    @property
    def models(self) -> list[str]:
        """In the order in which they come."""
        return list(dict.fromkeys(self.columns["model"]))

    @property
    def metrics(self) -> list[str]:
        """In the order in which they come."""
        return list(dict.fromkeys(self.columns["metric"]))


def read_results(paths: Sequence[Path]) -> Results:
    """Reads the files of a report, each by what is in it.

    Beside a split.json, leaks.jsonl and eval.jsonl are read too if they are there: they hold the
    leaks and the texts of what is shown.

    Raises:
      UsageError: no such file, a file of another kind, or no evaluation table among them.
      DataError: a file is damaged.
    """
    tables, scores, files, texts, split = [], [], [], {}, None
    # By file, so that the one beside split.json does not count twice where it is named too.
    leaks: dict[Path, list[dict[str, Any]]] = {}
    origins: list[tuple[Path, Mapping[str, str]]] = []
    for path in map(Path, paths):
        if not path.is_file():
            raise UsageError("there is no such file", file=path, remedy="check the path")
        metadata: Mapping[str, str] = {}
        if path.name.endswith(".json"):
            if split is not None:
                raise UsageError(
                    "is a second split; the report is about one",
                    file=path,
                    remedy="give one split.json, and results of its eval.jsonl",
                )
            split = _read_split(path)
            for beside in (path.with_name("leaks.jsonl"), path.with_name("eval.jsonl")):
                if beside.is_file():
                    found = _read_json_lines(beside)
                    if beside.name == "leaks.jsonl":
                        leaks[beside.resolve()] = found
                    else:
                        texts |= _read_texts(found)
        else:
            names = _read_names(path)
            nothing_leaked = path.name == "leaks.jsonl" and not names
            if {"side", "kinds", "train_id"} <= names or nothing_leaked:
                leaks[path.resolve()] = _read_json_lines(path)
            elif "token_log_probs" in names:
                scores.append(read_scores(path))
                metadata = read_metadata(scores[-1])
            elif set(_NEEDED) <= names:
                table = read_evaluation_table(path)
                tables.append(to_columns(table))
                metadata = read_metadata(table)
                origins.append((path, metadata))
            else:
                lacks = [name for name in _NEEDED if name not in names]
                almost = f": it has no column {', '.join(lacks)}" if len(lacks) < 3 else ""
                raise UsageError(
                    f"is no evaluation table, score table, split.json or leaks.jsonl{almost}",
                    file=path,
                    remedy="give files of `instructjax evaluate`, `score` or `split`",
                )
        files.append(SourceFile(name=path.name, sha256=_digest(path), metadata=metadata))
    if not any(len(table["value"]) for table in tables):
        raise UsageError(
            "there is no evaluation table", remedy="give one that `instructjax evaluate` wrote"
        )
    _tell_apart(tables, origins)
    columns = {name: np.concatenate([table[name] for table in tables]) for name in _TEXTS}
    return Results(
        columns=columns,
        value=np.concatenate([table["value"] for table in tables]),
        cell=_number_cells(columns["cell"]),
        scores=tuple(scores),
        split=split,
        leaks=tuple(leak for found in leaks.values() for leak in found),
        texts=texts,
        files=tuple(files),
    )


def read_recipe(results: Results) -> SplitRecipe | None:
    """What was held out; None where no split.json is there, or where a list of tasks told.

    Raises:
      DataError: split.json has another recipe than there is.
    """
    split = results.split or {}
    if split.get("preset", "none") != "none" or "recipe" not in split:
        return None
    try:
        return SplitRecipe(**split["recipe"])
    except (TypeError, UsageError) as error:
        raise DataError(
            f"the recipe of split.json is none ({error})",
            remedy="give the split.json that `instructjax split` wrote",
        ) from None


def read_atom_divergence(results: Results) -> float | None:
    """Of a compositional split, as split.json tells it; None of any other."""
    told = (results.split or {}).get("compositional")
    value = told.get("atom_divergence") if isinstance(told, Mapping) else None
    return float(value) if isinstance(value, int | float) else None


def _tell_apart(
    tables: Sequence[Mapping[str, np.ndarray]], origins: Sequence[tuple[Path, Mapping[str, str]]]
) -> None:
    """Gives the name of their file to models of one name that are not the same one, in place.

    Raises:
      UsageError: two tables have the same row of the same model: it would count twice.
    """
    prints: dict[str, set[str]] = {}
    for table, (_, about) in zip(tables, origins, strict=True):
        for name in set(table["model"]):
            prints.setdefault(name, set()).add(about.get(f"{name}/model_fingerprint", ""))
    paths = [path for path, _ in origins]
    short = Counter(path.name for path in paths)
    labels = {path: path.name if short[path.name] == 1 else path for path in paths}
    known: set[tuple[str, ...]] = set()
    for table, (path, _) in zip(tables, origins, strict=True):
        names = table["model"]
        for name in set(names):
            if len(prints[name] - {""}) > 1:
                names[names == name] = f"{name} ({labels[path]})"
        if len(tables) > 1:
            columns = ("model", "metric", "id", "instruction_hash", "input_hash")
            rows = set(zip(*(table[column] for column in columns), strict=True))
            if twice := rows & known:
                model, metric, id, *_ = min(twice)
                raise UsageError(
                    f"{len(twice):,} rows are in another table too, the first {id!r:.80} of "
                    f"{model!r:.80} in {metric!r:.80}",
                    file=path,
                    remedy="give each result once",
                )
            known |= rows


def make_results(
    rows: Sequence[Mapping[str, Any]],
    *,
    scores: Sequence[pa.Table] = (),
    split: Mapping[str, Any] | None = None,
    leaks: Sequence[Mapping[str, Any]] = (),
    texts: Mapping[str, str] | None = None,
    files: Sequence[SourceFile] = (),
) -> Results:
    """Results of rows of an evaluation table in memory.

    >>> row = {"model": "m", "id": "a", "metric": "f1", "value": 0.5, "cell": "seen_c_seen_z"}
    >>> results = make_results([row])
    >>> results.models, results.cell.tolist()
    (['m'], [0])
    """
    columns = {}
    for name in _TEXTS:
        column = np.empty(len(rows), object)
        column[:] = ["" if (v := row.get(name)) is None else str(v) for row in rows]
        columns[name] = column
    return Results(
        columns=columns,
        value=np.array([_to_float(row.get("value")) for row in rows], np.float64),
        cell=_number_cells(columns["cell"]),
        scores=tuple(scores),
        split=split,
        leaks=tuple(leaks),
        texts=dict(texts or {}),
        files=tuple(files),
    )


def _to_float(value: Any) -> float:
    return float("nan") if value in (None, "") else float(value)


def _number_cells(names: np.ndarray) -> Int[np.ndarray, " N"]:
    number = {name: place for place, name in enumerate(CELLS)}
    return np.array([number.get(name, -1) for name in names], int)


def _read_names(path: Path) -> set[str]:
    """Names of the columns of a table, from its beginning."""
    try:
        if path.suffix == ".parquet":
            return set(pq.read_schema(path).names)
        with path.open(encoding="utf-8", newline="") as stream:
            if path.suffix == ".csv":
                return set(next(csv.reader(stream), []))
            if path.suffix == ".jsonl":
                first = next((line for line in stream if line.strip()), "{}")
                return set(json.loads(first))
    except (OSError, ValueError, TypeError, csv.Error, pa.ArrowException) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="make it again") from None
    raise UsageError("is no table", file=path, remedy="give .parquet, .jsonl, .csv or split.json")


def _read_json_lines(path: Path) -> list[dict[str, Any]]:
    rows = []
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    row = json.loads(line)
                    if not isinstance(row, dict):
                        raise ValueError(f"line {number} is no object")
                    rows.append(row)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="make it again") from None
    return rows


def _read_split(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError("it is too large")
        split = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="make it again") from None
    if not isinstance(split, dict) or not isinstance(split.get("recipe"), dict):
        raise UsageError("is no split.json", file=path, remedy="give that of `instructjax split`")
    return split


def _read_texts(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    texts = {}
    for row in rows:
        for side in ("instruction", "input"):
            hash, text = row.get(f"{side}_hash"), row.get(side, "")
            if isinstance(hash, str) and isinstance(text, str):
                texts[hash] = text
    return texts


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
