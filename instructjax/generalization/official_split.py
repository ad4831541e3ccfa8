"""Which tasks are held out, read from a list such as Super-NaturalInstructions' own."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from instructjax.errors import DataError, UsageError

_UNSEEN = {"test": True, "train": False}
_TEST, _TRAIN = "test_tasks.txt", "train_tasks.txt"


def find_task_split(data: Path) -> Path | None:
    """`splits/default` of Super-NaturalInstructions, in the folder of the data or beside it."""
    places = (folder / "splits" / "default" for folder in (data, data.parent))
    return next((place for place in places if (place / _TEST).is_file()), None)


def read_task_split(path: Path) -> dict[str, bool]:
    """Task names, and whether each is held out.

    Args:
      path: a .jsonl file whose rows have `task` and `split` ("train" or "test"; rows of another
        split are left out), a .json file with an object from task to split, or a .txt file with
        the name of a test task on each line. Of `test_tasks.txt` in `splits/default` of
        Super-NaturalInstructions, or of that folder, `train_tasks.txt` beside it is read too: what
        is in neither is excluded. Without one, all other tasks are trained on.

    Returns:
      By task, True where it is held out. From a .txt file alone, True alone: the rest is seen.

    Raises:
      UsageError: no such file, or another extension.
      DataError: it is no such list, or names a task in both splits.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "split.json"
    >>> _ = file.write_text('{"task1": "train", "task2": "test", "task3": "excluded"}')
    >>> read_task_split(file)
    {'task1': False, 'task2': True}
    """
    if path.is_dir():
        path = path / _TEST
    if path.suffix not in (".jsonl", ".json", ".txt"):
        raise UsageError("is no list of tasks", file=path, remedy="give a .jsonl, .json, .txt file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError("there is no such file", file=path, remedy="check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read ({error})", file=path, remedy="get it again") from None
    tasks: dict[str, bool] = {}
    train = path.with_name(_TRAIN)
    entries = [(path, *entry) for entry in _list_tasks(path, text)]
    if path.name == _TEST and train.is_file():
        names = train.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        entries += [(train, f"line {n}", name, "train") for n, name in enumerate(names, 1) if name]
    for file, place, task, split in entries:
        if not isinstance(task, str) or not isinstance(split, str):
            raise DataError(
                "no `task` and `split`", file=file, row=place, remedy="give both, as text"
            )
        unseen = _UNSEEN.get(split.strip().lower())
        if unseen is None:
            continue
        if tasks.setdefault(task.strip(), unseen) != unseen:
            raise DataError(
                f"task {task!r:.80} is in both splits", file=file, row=place, remedy="keep one"
            )
    if True not in tasks.values():
        raise DataError("no task is held out", file=path, remedy='give tasks the split "test"')
    return tasks


def _list_tasks(path: Path, text: str) -> Iterator[tuple[str, Any, Any]]:
    """Place, task and split of each entry."""
    lines = [(f"line {n}", line) for n, line in enumerate(text.splitlines(), 1) if line.strip()]
    if path.suffix == ".txt":
        yield from ((place, line, "test") for place, line in lines)
        return
    try:
        if path.suffix == ".json":
            mapping = json.loads(text)
            if not isinstance(mapping, Mapping):
                raise DataError("is no object", file=path, remedy='write {"task": "test", ...}')
            yield from ((f"task {task!r:.80}", task, split) for task, split in mapping.items())
            return
        for place, line in lines:
            row = json.loads(line)
            row = row if isinstance(row, Mapping) else {}
            yield place, row.get("task"), row.get("split")
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no JSON ({error})", file=path, remedy="repair it") from None
