"""The hub, with its client replaced: what is asked for, and what each failure says."""

from __future__ import annotations

import fnmatch

import huggingface_hub
import pytest
from huggingface_hub import errors

from instructjax.errors import ModelError
from instructjax.models.checkpoints.hub import download_from_hub


class _Response:
    """As much of an HTTP response as the client's errors look at."""

    headers: dict = {}
    request = None
    status_code = 401


def test_weights_configuration_and_tokenizer_are_asked_for_and_no_code(monkeypatch, tmp_path):
    asked = {}

    def snapshot_download(repo, **options):
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert download_from_hub("org/name") == tmp_path
    assert asked["repo"] == "org/name"

    def taken(file: str) -> bool:
        allowed = any(fnmatch.fnmatch(file, pattern) for pattern in asked["allow_patterns"])
        return allowed and not any(fnmatch.fnmatch(file, p) for p in asked["ignore_patterns"])

    for file in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer.model",
        "chat_template.jinja",
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ):
        assert taken(file), file
    for file in (
        "pytorch_model.bin",
        "pytorch_model-00001-of-00002.bin",
        "model.pth",
        "modeling_llama.py",
        "original/consolidated.00.pth",
        "onnx/config.json",
        "model.gguf",
    ):
        assert not taken(file), file


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (errors.RepositoryNotFoundError, "org/name is not on the Hugging Face hub.*check the name"),
        (errors.GatedRepoError, "org/name is gated; accept its terms"),
        (errors.LocalEntryNotFoundError, "cannot be reached; connect once"),
        (errors.OfflineModeIsEnabled, "cannot be reached; connect once"),
        (OSError, "cannot be downloaded: reason; check the network and the space"),
    ],
)
def test_failures_say_what_to_do(monkeypatch, kind, message):
    if issubclass(kind, errors.HfHubHTTPError):
        failure = kind.__new__(kind, "reason")
    else:
        failure = kind("reason")

    def snapshot_download(repo, **options):
        raise failure

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(ModelError, match=message):
        download_from_hub("org/name")
