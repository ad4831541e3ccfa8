"""The configuration: read strictly, written so that it can be read again."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instructjax.errors import DataError, UsageError
from instructjax.finetuning.config import FinetuneConfig
from instructjax.finetuning.config_file import read_config, write_config

GIVEN: dict[str, Any] = {"data": (Path("rows.jsonl"),), "out": Path("run")}


def make_unchecked(**values: Any) -> FinetuneConfig:
    """As without the checks of types that the tests themselves put before every function."""
    config = FinetuneConfig(**GIVEN)
    for name, value in values.items():
        object.__setattr__(config, name, value)
    config.__post_init__()
    return config


def write(folder: Path, text: str) -> Path:
    file = folder / "c.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_written_configuration_reads_to_the_same(tmp_path: Path) -> None:
    config = FinetuneConfig(
        data=(Path('a "b".jsonl'), Path("é.jsonl")),
        data_weights=(1.0, 2.5),
        out=Path("run"),
        clip_norm=None,
        steps=7,
        export="none",
        beta2=0.95,
        include_eos=False,
    )
    file = write(tmp_path, write_config(config))
    assert FinetuneConfig(**read_config(file)) == config
    assert set(read_config(file)) >= {"data", "learning_rate", "export", "clip_norm"}


def test_overwriting_is_not_written_down(tmp_path: Path) -> None:
    text = write_config(FinetuneConfig(**GIVEN, overwrite=True))
    assert read_config(write(tmp_path, text)).get("overwrite") is None


def test_types_are_those_of_the_fields(tmp_path: Path) -> None:
    text = 'data = "rows.jsonl"\nout = "run"\nlearning-rate = 1\nclip_norm = "none"\nkeep = 3\n'
    found = read_config(write(tmp_path, text))
    assert found == {**GIVEN, "learning_rate": 1.0, "clip_norm": None, "keep": 3}
    assert type(found["learning_rate"]) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rat = 1e-4", "there is no option 'learning_rat'; did you mean 'learning_rate'"),
        ("[optimizer]\nname = 'lion'", "there is no option 'optimizer.*|optimizer is"),
        ("keep = 1.5", "keep is 1.5; give a whole number"),
        ("keep = true", "keep is True; give a whole number"),
        ("packing = 1", "packing is 1; give true or false"),
        ("schedule = 'cos'", "schedule is 'cos'; give one of constant, linear, cosine, wsd"),
        ("data = [1]", r"data is \[1\]; give a path"),
        ("learning_rate = '1e-4'", "learning_rate is '1e-4'; give a number"),
        ("keep = 1\n'keep' = 2", "is no TOML"),
        ("row-length = 1\nrow_length = 2", "'row_length' comes twice"),
        ("keep = ", "is no TOML"),
    ],
)
def test_a_wrong_file_is_told(tmp_path: Path, text: str, message: str) -> None:
    file = write(tmp_path, text)
    with pytest.raises((UsageError, DataError), match=message) as told:
        read_config(file)
    assert str(told.value).startswith(str(file))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_config(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "rows is 0; give a number, 1 or more"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0"),
        ({"final_share": 1.5}, "final_share is 1.5"),
        ({"data_weights": (1.0, 2.0)}, "2 data_weights for 1 data sets"),
        ({"data_weights": (0.0,)}, "more than 0"),
        ({"data_weights": (float("nan"),)}, "more than 0"),
        ({"beta2": 1.0}, "beta2 is 1.0; give a number, from 0 up, below 1"),
        ({"epsilon": 0.0}, "epsilon is 0.0; give a number, more than 0"),
        ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
        ({"steps": 10, "warmup_steps": 10}, "warmup_steps is 10, and the run has 10 steps"),
        ({"patience": 3}, "patience is 3, and there is no held-out data"),
        ({"export": "best"}, "export is best, and there is no held-out data"),
        ({"adapter": True}, "an adapter comes from LoRA"),
        ({"train": "lora", "trainable": ("*.q.*",)}, "leave out `trainable`"),
        ({"data": ()}, "there is no data"),
        ({"packing": False, "share_prefixes": True}, "leave out share_prefixes"),
        ({"trainable": ()}, "nothing would learn"),
    ],
)
def test_values_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FinetuneConfig(**{**GIVEN, **options})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("train", "LoRA", "train is 'LoRA'; give one of all, lora"),
        ("dtype", "float16", "dtype is 'float16'; give one of float32, bfloat16"),
        ("export", "Best", "export is 'Best'; give one of best, last, none"),
    ],
)
def test_choices_that_are_none_are_refused(name: str, value: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_unchecked(**{name: value})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("steps", 2.5, "steps is 2.5; give a whole number"),
        ("rows", True, "rows is True; give a whole number"),
        ("learning_rate", "high", "learning_rate is 'high'; give a number"),
        ("packing", 1, "packing is 1; give true or false"),
        ("data", 3, "data is 3; give a path"),
    ],
)
def test_values_of_other_types_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        make_unchecked(**{name: value})


def test_python_may_write_what_toml_does() -> None:
    given: dict[str, Any] = {"data": "rows.jsonl", "out": "run", "clip_norm": 1, "model": Path("m")}
    config = make_unchecked(**given, steps=np.int64(3), learning_rate=np.float32(0.5))
    assert config.data == (Path("rows.jsonl"),) and config.out == Path("run")
    assert (config.clip_norm, config.steps, config.model) == (1.0, 3, "m")
    assert type(config.steps) is int and type(config.learning_rate) is float


def test_a_run_is_not_kept_among_its_data(tmp_path: Path) -> None:
    for out in (tmp_path, tmp_path / "runs" / "first"):
        with pytest.raises(UsageError, match="lies in the data folder"):
            FinetuneConfig(data=(tmp_path,), out=out)


def test_names_that_are_not_utf_8_are_refused() -> None:
    name = Path(os.fsdecode(b"r\xff.jsonl"))
    with pytest.raises(UsageError, match="the name is not UTF-8"):
        FinetuneConfig(data=(name,), out=Path("run"))


def test_every_option_says_what_it_is() -> None:
    text = Path(__file__).parents[2].joinpath("instructjax/finetuning/config.py").read_text()
    lines = [line.strip() for line in text.splitlines()]
    for field in dataclasses.fields(FinetuneConfig):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"{field.name}: "))
        assert lines[at + 1].startswith('"""'), field.name
