"""Tasks of lm-evaluation-harness by name, with what cannot run said before anything runs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import instructjax.integrations.lm_eval  # noqa: F401  # says so if the harness is not installed
from instructjax.errors import DataError, InstructJaxError, UsageError
from instructjax.integrations.lm_eval_processes import refuse_to_write
from instructjax.sharding.processes import several

# After that.
from lm_eval.tasks import TaskManager  # isort: skip

SHOWN_MATCHES = 5


class ScoringTasks(TaskManager):
    """The harness' task manager, whose errors name the remedy."""

    def load(self, task_list: Any) -> Any:
        """Loads tasks and their data.

        Raises:
          DataError: a task or its data cannot be loaded.
          UsageError: a task asks for responses, of several processes.
        """
        try:
            loaded = super().load(task_list)
        except InstructJaxError:
            raise
        except Exception as error:  # tasks are code and data from anywhere
            reason = " ".join(str(error).split())[:300] or "no reason given"
            raise DataError(
                f"the tasks {', '.join(map(str, task_list))} cannot be loaded "
                f"({type(error).__name__}: {reason})",
                remedy="check their files; data of built-in tasks come from the Hugging Face hub",
            ) from error
        asking = [name for name, task in loaded["tasks"].items() if _asks_to_write(task)]
        if asking and several():
            refuse_to_write(asking[0])
        return loaded


def _asks_to_write(task: Any) -> bool:
    return getattr(task, "OUTPUT_TYPE", None) == "generate_until"


def find_tasks(
    names: Sequence[str], include_path: Path | None = None
) -> tuple[ScoringTasks, list[str]]:
    """Finds tasks, groups and tags by name, by pattern ("mmlu_*") or by the path of a YAML file.

    Args:
      names: as a person wrote them.
      include_path: a folder with tasks of one's own. If it holds all that is asked for, the
        harness' own tasks are not even indexed, which takes some 10 s.

    Returns:
      The manager that knows them, and their full names.

    Raises:
      UsageError: no such folder; no names; or an unknown name, with those most like it.
    """
    if include_path is not None and not include_path.is_dir():
        raise UsageError("is no folder", file=include_path, remedy="give --include-path a folder")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError("no task is named", remedy="write for example --tasks arc_easy,copa")
    if include_path is not None:
        manager = ScoringTasks(include_path=str(include_path), include_defaults=False)
        found, unknown = _match(manager, names)
        if not unknown:
            return manager, found
    manager = ScoringTasks(include_path=None if include_path is None else str(include_path))
    found, unknown = _match(manager, names)
    if unknown:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks, SHOWN_MATCHES, 0.5)
        near += [name for name in manager.all_tasks if unknown[0] in name and name not in near]
        like = (
            f"did you mean {', '.join(near[:SHOWN_MATCHES])}?" if near else "see `lm_eval ls tasks`"
        )
        raise UsageError(f"there is no task {unknown[0]!r}", remedy=like)
    return manager, found


def _match(manager: TaskManager, names: Sequence[str]) -> tuple[list[str], list[str]]:
    found: dict[str, None] = {}
    unknown = []
    for name in names:
        matches = manager.match_tasks([name])
        if not matches and name.endswith((".yaml", ".yml")) and Path(name).is_file():
            matches = [name]
        found.update(dict.fromkeys(matches))
        unknown += [] if matches else [name]
    return list(found), unknown
