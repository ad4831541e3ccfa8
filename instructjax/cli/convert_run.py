"""`instructjax convert`: a model read, and written as a folder."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from instructjax.cli.convert import Convert
from instructjax.cli.messages import escape_controls
from instructjax.errors import UsageError
from instructjax.finetuning.export import explain_template
from instructjax.finetuning.restore import (
    config_of,
    is_run,
    load_trained,
    write_trained_adapter,
)
from instructjax.finetuning.run_folder import blaming
from instructjax.models import load_model
from instructjax.models.checkpoints.export import check_new_folder, export_folder, new_folder


def run_convert(options: Convert) -> int:
    """Reads and writes; returns the exit code."""
    if not 0 < options.shard_gb < 1e6:
        raise UsageError(f"--shard-gb {options.shard_gb:g} is not a size", remedy="give gigabytes")
    folder = options.out.expanduser()
    check_new_folder(folder)
    start = time.monotonic()
    run = Path(options.model).expanduser()
    if not is_run(run):
        if options.adapter or options.step is not None:
            raise UsageError(
                f"{options.model} is not the folder of a fine-tuning run",
                remedy="leave out --adapter and --step, or give the folder that `finetune` wrote",
            )
        # What is rounded to bfloat16 once need not be held in float32 before.
        kept = "bfloat16" if options.dtype == "bfloat16" else "float32"
        model = load_model(options.model, dtype=kept)
    elif options.adapter:
        return _write_adapter(run, folder, options.step)
    else:
        model = load_trained(run, options.step)
    with Progress(
        TextColumn("writing"),
        BarColumn(bar_width=20),
        DownloadColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    ) as bar:
        task = bar.add_task("")
        export_folder(
            model,
            folder,
            dtype=options.dtype,
            max_shard_bytes=max(1, int(options.shard_gb * 1e9)),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    template = "without a" if model.tokenizer.chat_template is None else "with its"
    name = escape_controls(model.name)
    print(
        f"{folder}: {name} ({model.config.family}, {model.config.num_params / 1e6:,.1f}M "
        f"parameters) in {options.dtype}, {size / 1e6:,.0f} MB, {template} chat template, "
        f"written in {time.monotonic() - start:.1f} s"
    )
    if is_run(run) and (without := explain_template(config_of(run))):
        print(escape_controls(f"{folder} has {without}"))
    return 0


def _write_adapter(run: Path, folder: Path, step: int | None) -> int:
    with blaming(folder), new_folder(folder) as staged:
        base = write_trained_adapter(run, staged, step)
        readme = staged / "README.md"
        note = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    name = escape_controls(base.name)
    print(f"{folder}: an adapter for {name} as PEFT reads it, {size / 1e6:,.1f} MB")
    if note:
        print(escape_controls(note.strip()))
    return 0
