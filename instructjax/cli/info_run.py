"""`instructjax info`: what a model is."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from instructjax.cli.info import Info
from instructjax.cli.messages import escape_controls
from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.models import Model, load_model
from instructjax.scoring.api import make_encoder
from instructjax.scoring.metadata import installed_version

_BYTES = {"float32": 4, "bfloat16": 2}
_SAMPLE = Example(instruction="INSTRUCTION", input="INPUT", output="RESPONSE")


def run_info(options: Info) -> int:
    """Prints what there is to know; returns the exit code."""
    model = load_model(options.model, dtype=options.dtype)
    about = describe_model(model)
    if options.json:
        print(json.dumps(about, indent=2, ensure_ascii=False))
        return 0
    console = Console(highlight=False)
    grid = Table.grid(padding=(0, 2))
    for name, value in _to_lines(about):
        grid.add_row(Text(name, style="dim"), Text(escape_controls(value)))
    console.print(grid)
    if rendered := about["rendered"]:
        console.print("\n[dim]layout user; what is scored is bold:[/]")
        text = Text(_visible(rendered["prompt"]))
        console.print(text.append(_visible(rendered["response"]), style="bold"))
    else:
        console.print("\n[dim]no chat template: score with --layout plain, alpaca or raw[/]")
    return 0


def describe_model(model: Model) -> dict[str, Any]:
    """Everything that `instructjax info` says, as JSON values."""
    encoder = make_encoder(model)
    rules = encoder.describe()
    try:
        request = encoder.encode(_SAMPLE, row=0)[0]
        start = request.spans[0][0]
        rendered = {
            "prompt": model.tokenizer.decode(request.ids[:start]),
            "response": model.tokenizer.decode(request.ids[start:]),
        }
    except PromptError:
        # A base model, without a chat template.
        rendered = None
        rules = make_encoder(model, layout="plain").describe()
    return {
        "name": model.name,
        "fingerprint": model.fingerprint,
        "config": dataclasses.asdict(model.config),
        "num_params": model.config.num_params,
        "weights": model.weights,
        "dtype": model.dtype,
        "num_bytes": model.config.num_params * _BYTES[model.dtype],
        "tokenizer": rules["tokenizer"],
        "tokenizer_fingerprint": rules["tokenizer_fingerprint"],
        "tokenizer_size": model.tokenizer.vocab_size,
        "chat_template": model.tokenizer.chat_template is not None,
        "template_fingerprint": model.tokenizer.template_fingerprint,
        "layout": rules["layout"],
        "bos": rules["bos"],
        "eos": rules["eos"],
        "eos_ids": list(model.tokenizer.eos_ids),
        "rendered": rendered,
        "instructjax": installed_version(),
    }


def _to_lines(about: dict[str, Any]) -> list[tuple[str, str]]:
    config, rope = about["config"], about["config"]["rope"]
    head = "tied to the embedding" if config["tie_embeddings"] else "a table of its own"
    stretched = "" if rope["kind"] == "default" else f", {rope['kind']} x{rope['factor']:g}"
    template = f"sha256 {about['template_fingerprint'][:16]}" if about["chat_template"] else "none"
    return [
        ("model", about["name"]),
        ("architecture", config["family"]),
        (
            "size",
            f"{about['num_params']:,} parameters, "
            f"{about['num_bytes'] / 1e6:,.0f} MB in {about['dtype']}",
        ),
        ("weights", _describe_weights(about["weights"], about["dtype"])),
        (
            "layers",
            f"{config['num_layers']} of width {config['hidden_size']:,}, "
            f"MLP {config['intermediate_size']:,}",
        ),
        (
            "heads",
            f"{config['num_heads']} of {config['head_dim']}, "
            f"{config['num_kv_heads']} for keys and values",
        ),
        ("context", f"{config['max_positions']:,} tokens, RoPE base {rope['theta']:,g}{stretched}"),
        ("vocabulary", f"{config['vocab_size']:,} rows, head {head}"),
        (
            "tokenizer",
            f"{about['tokenizer']}, {about['tokenizer_size']:,} tokens, "
            f"sha256 {about['tokenizer_fingerprint'][:16]}",
        ),
        ("template", template),
        ("BOS", _describe_bos(about["bos"])),
        ("EOS", f"{about['eos']}; generation ends at ids {', '.join(map(str, about['eos_ids']))}"),
        ("fingerprint", about["fingerprint"]),
    ]


def _describe_weights(kind: str, dtype: str) -> str:
    """The type they are stored in, and what became of it.

    >>> _describe_weights("Q4_1", "float32"), _describe_weights("BF16", "bfloat16")
    ('Q4_1, dequantized to float32', 'BF16, kept as bfloat16')
    """
    stored = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}.get(kind)
    if stored is None:
        return f"{kind}, dequantized to {dtype}"
    return f"{kind}, kept as {dtype}" if stored == dtype else f"{kind}, converted to {dtype}"


def _describe_bos(rule: str) -> str:
    how, _, token = rule.partition(" ")
    known = {"layout": "written by the chat template", "added": "added before the text"}
    return f"{token}, {known[how]}" if how in known else rule


def _visible(text: str) -> str:
    return "\n".join(escape_controls(line) for line in text.split("\n"))
