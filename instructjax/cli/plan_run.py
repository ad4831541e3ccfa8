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
from instructjax.models.sharded import tell_whole
from instructjax.planning.collectives import Collective
from instructjax.planning.models import read_decoder_config
from instructjax.planning.plan import Plan, make_plan, peak_memory
from instructjax.planning.search import find_nearest, search
from instructjax.planning.setting import Setting, least_length
from instructjax.planning.topology import Topology, compiler_missing, parse_topology
from instructjax.scoring.tables.disk import write_whole
from instructjax.sharding import size_mesh

UNITS = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))
MIB, GIB = 1 << 20, 1 << 30
# Options of a step, which scoring has none of.
_OF_STEPS = ("micro_batches", "remat", "train", "lora_rank", "optimizer")
# More lines than these say little, and are added up in one.
_COLLECTIVES, _RANKED = 8, 12


def run_plan(options: Options) -> int:
    """Prints the plan; returns the exit code."""
    topology = parse_topology(options.topology, options.slices)
    # No device is needed, and one that is there may be busy: nothing must be run on it.
    jax.config.update("jax_platforms", "cpu")
    if topology.chip.platform == "cpu":
        jax.config.update("jax_num_cpu_devices", topology.num_devices)
    if options.json is not None and not options.json.parent.is_dir():
        raise UsageError(
            "its folder is not there", file=options.json, remedy="make it, or give another --json"
        )
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
    _warn_of_short_rows(setting, console)
    if whole := tell_whole(config, setting.abstract_mesh, setting.rules):
        console.print(f"[yellow]{escape(whole)}[/]")
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
    _check(options)
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


def _check(options: Options) -> None:
    for name in ("length", "micro_batches", "lora_rank", "batch", "compile"):
        value, least = getattr(options, name), int(name != "compile")
        if value is not None and value < least:
            raise UsageError(f"{_flag(name)} is {value}", remedy=f"give {least} or more")
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    changed = [name for name in _OF_STEPS if getattr(options, name) != defaults[name]]
    if options.task == "score" and changed:
        raise UsageError(
            f"{' and '.join(map(_flag, changed))} say how a fine-tuning step is computed",
            remedy="leave them out, or give --task finetune",
        )
    if options.train == "all" and "lora_rank" in changed:
        raise UsageError("--lora-rank is of LoRA", remedy="give --train lora with it")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


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
    seconds, memory = plan.seconds, peak_memory() / GIB
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
        table.add_column(column, justify="left" if at == 0 else "right", overflow="fold")
    return table


def _unit(num_bytes: float, most: int = GIB) -> tuple[str, int]:
    """The largest unit, up to one of `most` bytes, of which that is an eighth or more.

    >>> _unit(2.0**30), _unit(2.0**26), _unit(2.0**30, MIB), _unit(3.0)
    (('GiB', 1073741824), ('MiB', 1048576), ('MiB', 1048576), ('KiB', 1024))
    """
    fitting = [(name, size) for name, size in UNITS if size <= most]
    return next((pair for pair in fitting if num_bytes >= pair[1] / 8), fitting[-1])


def _size(num_bytes: float, most: int = GIB) -> str:
    """Bytes in the unit that suits them.

    >>> _size(3 * 2.0**29), _size(2.0**22), _size(9.0)
    ('1.50 GiB', '4.00 MiB', '9 B')
    """
    if num_bytes < 16:
        return f"{num_bytes:,.0f} B"
    unit, size = _unit(num_bytes, most)
    return f"{num_bytes / size:,.2f} {unit}"


def _memory_table(plan: Plan) -> Table:
    unit, size = _unit(plan.needed)
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
    columns = ("", "axes", "devices", "each", "times", "sent")
    table = _table(f"what devices say in a step{note}", *columns)
    for each in collectives[:_COLLECTIVES]:
        between = "slices" if each.network else ""
        kind = ", ".join(word for word in (each.kind, each.where, between) if word)
        table.add_row(
            kind,
            ", ".join(each.axes),
            str(each.group),
            _size(each.num_bytes, MIB),
            f"{each.count:,.0f}",
            _size(each.sent),
        )
    if rest := collectives[_COLLECTIVES:]:
        sent = _size(sum(each.sent for each in rest))
        count = sum(each.count for each in rest)
        table.add_row(f"{len(rest)} more kinds", "", "", "", f"{count:,.0f}", sent)
    return table


def _time_table(plan: Plan) -> Table:
    assert plan.times is not None
    chip = plan.topology.chip
    rate = chip.rate(plan.setting.dtype) / 1e12
    table = _table(f"least time of a step, at the chip's rates{_note(plan)}", "", "", "seconds")
    work = {
        "compute": f"{plan.flops / 1e12:,.1f} TFLOP ({plan.useful / 1e12:,.1f} useful) "
        f"at {rate:,.{0 if rate >= 100 else 1}f} T/s",
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
    needed, capacity = _size(plan.needed), plan.capacity / GIB
    if plan.fits is None:
        console.print(f"needs {needed} a device; how much there will be is not known")
    elif plan.fits:
        console.print(f"[bold green]fits:[/] {needed} of {capacity:,.2f} GiB")
        show_fraction(plan, console)
    else:
        console.print(f"[bold red]does not fit:[/] needs {needed} of {capacity:,.2f} GiB")
        if nearest is None:
            console.print(
                "nothing near fits, of meshes of data, fsdp, expert, context and tensor: "
                "take more or larger devices"
            )
        else:
            console.print(
                f"the nearest that fits, by estimate: {nearest.setting.describe()} "
                f"({_size(nearest.needed)})\n  {_flags(nearest.setting)}"
            )
            show_fraction(nearest, console)
    if plan.times is not None and plan.fits is not False:
        times = plan.times
        console.print(
            f"{times.best:,.3f} to {times.worst:,.3f} s a step (all at once; one after the other), "
            f"bound by {times.bound}: at best {plan.tokens / times.best:,.0f} tokens/s, "
            f"{plan.utilization:.0%} of peak"
        )


def show_fraction(plan: Plan, console: Console) -> None:
    """What must be set for JAX to take as much of a GPU's memory as is needed, if anything."""
    if plan.memory_fraction is not None:
        console.print(
            f"that is more than the {plan.topology.chip.taken:.0%} of a GPU's memory that JAX "
            f"takes: set XLA_PYTHON_CLIENT_MEM_FRACTION={plan.memory_fraction:.2f} or more"
        )


def _warn_of_short_rows(setting: Setting, console: Console) -> None:
    if setting.copies > 1:
        least = least_length(setting.parts("sequence"), setting.length)
        console.print(
            f"[yellow]rows of {setting.length:,} tokens are too short to be split over context:[/] "
            f"its devices compute the same; give --length {least}, or another mesh"
        )


def _flags(setting: Setting) -> str:
    words = ",".join(f"{name}={size}" for name, size in setting.mesh.items())
    flags = f"--mesh {words} --batch {setting.batch}"
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
    # Settings are cut between words, so that a mesh can be copied.
    words = [word for plan in plans[:_RANKED] for word in plan.setting.describe().split()]
    table.columns[0].min_width = max(map(len, words))
    console.print(table)
    if len(fitting) < min(len(plans), _RANKED):
        console.print("! does not fit; an estimate must leave a tenth of the memory free")
    if not fitting:
        console.print("[bold red]none fits:[/] take more or larger devices")
    elif plans[0].fits is not False:
        console.print(f"the best: {_flags(plans[0].setting)}")
        show_fraction(plans[0], console)
    return plans
