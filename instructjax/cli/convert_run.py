"""`instructjax convert`: a model read, and written as a folder."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from instructjax.cli.convert import Convert
from instructjax.cli.messages import escape_controls
from instructjax.errors import UsageError
from instructjax.models import load_model
from instructjax.models.checkpoints.export import check_new_folder, export_folder


def run_convert(options: Convert) -> int:
    """Reads and writes; returns the exit code."""
    if not 0 < options.shard_gb < 1e6:
        raise UsageError(f"--shard-gb {options.shard_gb:g} is not a size", remedy="give gigabytes")
    folder = options.out.expanduser()
    check_new_folder(folder)
    start = time.monotonic()
    # What is rounded to bfloat16 once need not be held in float32 before.
    kept = "bfloat16" if options.dtype == "bfloat16" else "float32"
    model = load_model(options.model, dtype=kept)
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
    template = "with its" if model.tokenizer.chat_template is not None else "without a"
    name = escape_controls(model.name)
    print(
        f"{folder}: {name} ({model.config.family}, {model.config.num_params / 1e6:,.1f}M "
        f"parameters) in {options.dtype}, {size / 1e6:,.0f} MB, {template} chat template, "
        f"written in {time.monotonic() - start:.1f} s"
    )
    return 0
