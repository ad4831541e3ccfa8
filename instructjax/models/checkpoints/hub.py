"""Models of the Hugging Face hub, downloaded once into its own cache."""

from __future__ import annotations

from pathlib import Path

from instructjax.errors import ModelError

# Weights as safetensors, configuration, tokenizer and template. Never pickles, never code.
_WANTED = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model"]
_UNWANTED = ["*.bin", "*.pt", "*.pth", "*.py", "*/*"]


def download_from_hub(repo: str) -> Path:
    """The local folder of a hub model, downloaded where it is not in the cache.

    Args:
      repo: "organization/name".

    Raises:
      ModelError: there is no such model, it is gated, or the hub cannot be reached.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(repo, allow_patterns=_WANTED, ignore_patterns=_UNWANTED))
    except errors.GatedRepoError as error:
        raise _failure(
            repo, "is gated", "accept its terms on the hub and log in with `hf auth login`"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise _failure(
            repo,
            "is not on the Hugging Face hub, or is private",
            "check the name, log in with `hf auth login`, or give a local folder that exists",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _failure(
            repo,
            "is not in the cache, and the Hugging Face hub cannot be reached",
            "connect once, give a local folder or a .gguf file, or take the embedded "
            "smollm2-135m-instruct",
        ) from error
    except Exception as error:  # the HTTP client's own errors differ between versions
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _failure(
            repo,
            f"cannot be downloaded: {lines[0]}",
            "check the network and the space on disk, or give a local folder",
        ) from error


def _failure(repo: str, problem: str, remedy: str) -> ModelError:
    return ModelError(f"the model {repo} {problem}", remedy=remedy)
