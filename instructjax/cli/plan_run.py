"""`instructjax plan`: compiles, reads, and says it in tables of 80 columns."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from instructjax.cli.messages import escape_controls
from instructjax.cli.plan import Plan as Options
from instructjax.errors import UsageError
from instructjax.finetuning.optimizers import OptimizerConfig
from instructjax.models.config import DecoderConfig
from instructjax.models.lora import LoraConfig
from instructjax.planning.collectives import Collective
from instructjax.planning.models import read_decoder_config
from instructjax.planning.plan import Plan, make_plan
from instructjax.planning.search import find_nearest, search
from instructjax.planning.setting import Setting
from instructjax.planning.topology import Topology, compiler_missing, parse_topology
from instructjax.scoring.tables.disk import write_whole
from instructjax.sharding import size_mesh

MIB, GIB = 1 << 20, 1 << 30
# More lines than these say little, and are added up in one.
_COLLECTIVES, _RANKED = 8, 12


def run_plan(options: Options) -> int:
    """Prints the plan; returns the exit code."""
    topology = parse_topology(options.topology, options.slices)
    # No device is needed, and one that is there may be busy: nothing must be run on it.
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
    config = read_decoder_config(options.model)
    setting = read_setting(options, topology)
    console = Console(highlight=False)
    console.width = min(console.width, 80)
    missing = compiler_missing(topology) if options.compile else None
    if missing is not None:
        console.print(f"[yellow]estimated, not compiled:[/] to compile for it, {escape(missing)}")
    if options.search:
        plans = _search(options, config, topology, setting, console)
        _write(options, {"ranked": [plan.to_json() for plan in plans]})
        return 0
    with console.status(f"compiling for {topology}"):
        plan = make_plan(options.model, config, topology, setting, compile=options.compile > 0)
    show_plan(plan, console)
    nearest = find_nearest(plan, config) if plan.fits is False else None
    show_verdict(plan, nearest, console)
    _write(
        options,
        plan.to_json() | {"nearest_that_fits": nearest.to_json() if nearest else None},
    )
    return 0


def read_setting(options: Options, topology: Topology) -> Setting:
    """What the options ask for.

    Raises:
      UsageError: a mesh or a number that cannot be.
    """
    for name in ("length", "micro_batches", "lora_rank", "batch"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}", remedy="give 1 or more")
    lora = LoraConfig(rank=options.lora_rank) if options.train == "lora" else None
    setting = Setting(
        task=options.task,
        mesh=size_mesh(options.mesh, topology.num_devices),
        batch=1,
        length=options.length,
        micro_batches=options.micro_batches,
        remat=options.remat,
        dtype=options.dtype,
        lora=lora,
        optimizer=OptimizerConfig(name=options.optimizer),
    )
    together = setting.parts("batch") * options.micro_batches
    batch = together if options.batch is None else options.batch
    return dataclasses.replace(setting, batch=batch)


def _write(options: Options, values: dict[str, Any]) -> None:
    if options.json is not None:
        write_whole(options.json, json.dumps(values, indent=2) + "\n")


def show_plan(plan: Plan, console: Console) -> None:
    """What it is, and its memory, work and talk."""
    setting, topology = plan.setting, plan.topology
    what = "a fine-tuning step of" if setting.task == "finetune" else "scoring with"
    lora = f", LoRA of rank {setting.lora.rank}" if setting.lora else ""
    console.print(
        f"[bold]{what} {escape_controls(plan.model)}[/] ({_count(plan.num_params)}{lora}) "
        f"on {topology}: {topology.num_devices} x {topology.chip.label}"
    )
    many = f" in {setting.programs} rounds" if setting.programs > 1 else ""
    console.print(
        f"{setting.describe()}; {setting.batch:,} rows of {setting.length:,} tokens{many}, "
        f"{setting.dtype}"
    )
    seconds, memory = plan.seconds, plan.host_memory / GIB
    how = "compiled" if plan.source == "compiled" else "estimated, nothing compiled,"
    console.print(f"[dim]{how} in {seconds:,.0f} s with {memory:.1f} GiB here[/]")
    console.print(f"attention {_attention(plan)}\n")
    console.print(_memory_table(plan))
    if plan.collectives:
        console.print(_talk_table(plan.collectives, _note(plan)))
    if plan.times is not None:
        console.print(_time_table(plan))


def _attention(plan: Plan) -> str:
    """In which form it is computed there, and whether that was seen in the program."""
    how = {"flash": "by a kernel", "whole": "of whole rows, without a kernel"}
    words = how.get(plan.attention, "in tiles, without a kernel")
    if plan.attention == "flash" and plan.kernel_calls is not None:
        return f"{words}, called {plan.kernel_calls:,.0f} times a step"
    return words


def _note(plan: Plan) -> str:
    """What the compiler has not said, as it refused the program or was not asked."""
    return " (estimated)" if plan.collectives_source == "estimated" else ""


def _count(number: int) -> str:
    """A number of parameters.

    >>> _count(8_030_261_248), _count(134_515_008)
    ('8.03 B', '134.5 M')
    """
    return f"{number / 1e9:,.2f} B" if number >= 1e9 else f"{number / 1e6:,.1f} M"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for at, column in enumerate(columns):
        table.add_column(column, justify="left" if at == 0 else "right")
    return table


def _memory_table(plan: Plan) -> Table:
    unit, size = ("GiB", GIB) if plan.needed > GIB / 8 else ("MiB", MIB)
    table = _table("memory of a device", "", unit)
    for kind, held in plan.memory.items():
        note = " (estimated)" if plan.source == "estimated" and kind == "temporaries" else ""
        if held >= size / 2000:
            table.add_row(kind + note, f"{held / size:,.3f}")
    table.add_section()
    table.add_row("needed", f"{plan.needed / size:,.2f}")
    if plan.capacity:
        table.add_row("there is", f"{plan.capacity / size:,.2f}")
    return table


def _talk_table(collectives: Sequence[Collective], note: str) -> Table:
    unit, size = ("GiB", GIB) if collectives[0].sent > GIB / 8 else ("MiB", MIB)
    columns = ("", "axes", "devices", "MiB", "times", f"{unit} sent")
    table = _table(f"what devices say in a step{note}", *columns)
    for each in collectives[:_COLLECTIVES]:
        between = "slices" if each.network else ""
        kind = ", ".join(word for word in (each.kind, each.where, between) if word)
        table.add_row(
            kind,
            ", ".join(each.axes),
            str(each.group),
            f"{each.num_bytes / MIB:,.1f}",
            f"{each.count:,.0f}",
            f"{each.sent / size:,.2f}",
        )
    if rest := collectives[_COLLECTIVES:]:
        sent = sum(each.sent for each in rest) / size
        count = sum(each.count for each in rest)
        table.add_row(f"{len(rest)} more kinds", "", "", "", f"{count:,.0f}", f"{sent:,.2f}")
    return table


def _time_table(plan: Plan) -> Table:
    assert plan.times is not None
    chip = plan.topology.chip
    table = _table(f"least time of a step, at the chip's rates{_note(plan)}", "", "", "seconds")
    work = {
        "compute": f"{plan.flops / 1e12:,.1f} TFLOP ({plan.useful / 1e12:,.1f} useful) "
        f"at {chip.flops / 1e12:,.0f} T/s",
        "memory": f"about {plan.bytes_moved / 1e9:,.0f} GB at {chip.bandwidth / 1e9:,.0f} GB/s",
    }
    for name, seconds in plan.times.parts.items():
        sent = sum(each.sent for each in plan.collectives if _axes(name) == each.axes)
        table.add_row(name, work.get(name, f"{sent / 1e9:,.1f} GB"), f"{seconds:,.3f}")
    return table


def _axes(name: str) -> tuple[str, ...]:
    return tuple(name.removeprefix("talk over ").split("+"))


def show_verdict(plan: Plan, nearest: Plan | None, console: Console) -> None:
    """One or two lines that say it."""
    needed, capacity = plan.needed / GIB, plan.capacity / GIB
    if plan.fits is None:
        console.print(f"needs {needed:,.3f} GiB a device; how much there will be is not known")
    elif plan.fits:
        console.print(f"[bold green]fits:[/] {needed:,.2f} GiB of {capacity:,.2f}")
    else:
        console.print(f"[bold red]does not fit:[/] needs {needed:,.1f} GiB of {capacity:,.2f}")
        if nearest is None:
            console.print(
                "nothing near fits, of meshes of data, fsdp, expert and tensor: "
                "take more or larger devices"
            )
        else:
            console.print(
                f"the nearest that fits, by estimate: {nearest.setting.describe()} "
                f"({nearest.needed / GIB:,.1f} GiB)\n  {_flags(nearest.setting)}"
            )
    if plan.times is not None and plan.fits is not False:
        times = plan.times
        console.print(
            f"{times.best:,.3f} to {times.worst:,.3f} s a step (all at once; one after the other), "
            f"bound by {times.bound}: at best {plan.tokens / times.best:,.0f} tokens/s, "
            f"{plan.utilization:.0%} of peak"
        )


def _flags(setting: Setting) -> str:
    words = ",".join(f"{name}={size}" for name, size in setting.mesh.items())
    flags = f"--mesh {words}"
    if setting.task == "finetune":
        flags += f" --micro-batches {setting.micro_batches} --remat {setting.remat}"
    return flags


def _search(
    options: Options,
    config: DecoderConfig,
    topology: Topology,
    setting: Setting,
    console: Console,
) -> list[Plan]:
    count = 0 if compiler_missing(topology) else options.compile
    with console.status(f"trying meshes of {topology}"):
        plans = search(options.model, config, topology, setting, compile=count)
    fitting = [plan for plan in plans if plan.fits is not False]
    console.print(
        f"{escape_controls(options.model)} on {topology}, {setting.batch:,} rows of "
        f"{setting.length:,} tokens: {len(fitting)} of {len(plans)} settings fit"
    )
    table = _table("", "", "GiB", "s a step", "of peak", "bound by", "")
    for plan in plans[:_RANKED]:
        times = plan.times
        table.add_row(
            plan.setting.describe(),
            f"{plan.needed / GIB:,.1f}" + ("" if plan.fits is not False else " !"),
            "" if times is None else f"{times.best:,.3f}",
            "" if times is None else f"{plan.utilization:.0%}",
            "" if times is None else times.bound,
            plan.source,
        )
    console.print(table)
    if not fitting:
        console.print("[bold red]none fits:[/] take more or larger devices")
    elif plans[0].fits is not False:
        console.print(f"the best: {_flags(plans[0].setting)}")
    return plans
