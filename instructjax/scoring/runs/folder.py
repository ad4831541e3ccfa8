"""The folder beside a table to be, where the parts of it lie until it is complete.

In `<out>.parts` are a manifest (which run this is), a lock, and two files a part: its rows, as a
table of the same format, and a note with the rows' digest and what else there is to know. The note
comes last, so a part is there exactly if its note is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from instructjax.errors import UsageError
from instructjax.scoring.runs.manifest import digest_file, read_json

_NOTE = re.compile(r"(\d{12})-(\d{12})\.note")
_OURS = re.compile(r"lock|manifest|finished|.*\.tmp|\d{12}-\d{12}\.(note|rows)")


def folder_of(out: Path) -> Path:
    """Where the parts of a table are kept until it is complete.

    >>> folder_of(Path("scores.csv")).name
    'scores.csv.parts'
    """
    return out.with_name(out.name + ".parts")


def count_kept(out: Path) -> int:
    """Rows of the input that a stopped run has done, told from the names of its parts."""
    names = [_NOTE.fullmatch(file.name) for file in _list_files(folder_of(out))]
    return sum(int(name[2]) - int(name[1]) for name in names if name)


def is_finished(out: Path) -> bool:
    """Whether a run was stopped after its table was in place and before it had tidied up."""
    folder = folder_of(out)
    return (folder / "finished").exists() and not (folder / "table.tmp").exists() and out.exists()


def part_file(folder: Path, first: int, stop: int, suffix: str) -> Path:
    """A file of the part that covers rows `first` to `stop` of the input."""
    return folder / f"{first:012d}-{stop:012d}.{suffix}"


def find_parts(folder: Path) -> dict[int, int]:
    """The parts that are whole, the first row of each to that after its last; deletes all else."""
    done: dict[int, int] = {}
    for file in _list_files(folder):
        if file.suffix == ".tmp":
            file.unlink()
        elif name := _NOTE.fullmatch(file.name):
            first, stop = int(name[1]), int(name[2])
            note = read_json(file)
            with suppress(FileNotFoundError):
                digest = digest_file(part_file(folder, first, stop, "rows"))
                if isinstance(note, dict) and note.get("sha256") == digest:
                    done[first] = stop
                    continue
            file.unlink()
    for file in _list_files(folder):
        if file.suffix == ".rows" and not file.with_suffix(".note").exists():
            file.unlink()
    return done


def clear_folder(folder: Path) -> None:
    """Deletes all that is ours but the lock, the files that say what the others are last."""
    ours = [file for file in _list_files(folder) if _OURS.fullmatch(file.name)]
    for file in sorted(ours, key=lambda file: (file.name == "finished", not file.suffix)):
        if file.name != "lock":
            file.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Deletes all that is ours, and the folder if nothing else is in it."""
    clear_folder(folder)
    (folder / "lock").unlink(missing_ok=True)
    with suppress(OSError):  # something of the user's is in it
        folder.rmdir()


def check_ours(folder: Path) -> None:
    """Refuses a folder in which there is something else.

    Raises:
      UsageError: a file that no run has written; it is named.
    """
    foreign = [file for file in _list_files(folder) if not _OURS.fullmatch(file.name)]
    if foreign:
        raise UsageError(
            f"is the folder for unfinished tables, and {foreign[0].name} is in it",
            file=folder,
            remedy="move that away, or give another --out",
        )


def _list_files(folder: Path) -> Sequence[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
