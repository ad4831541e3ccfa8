"""Is greedy text right? Token by token against transformers `generate` on PyTorch, float32.

    python experiments/sampling_parity.py rows.jsonl more.jsonl --prompts 50 --out parity.json

Writes greedily after the same prompt ids with both, on the embedded default model. Where the best
two logits of PyTorch lie within 1e-4 of each other either is right, and what follows cannot be
compared; such places are counted. Exit code 1 if a token differs anywhere else. Needs the `compare`
extra.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

import instructjax as ij
from instructjax.sampling.rows import encode_prompt, make_prompt_encoder

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from sampling import MODEL, run_generate

TIE = 1e-4


def compare(ours: list[int], theirs: list[int], gaps: list[float]) -> tuple[str, int]:
    """("same", "tie" or "different"; tokens that were compared)."""
    for place, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if mine != other:
            return ("tie" if gaps[place] <= TIE else "different"), place
    same = len(ours) == len(theirs)
    return ("same" if same else "different"), min(len(ours), len(theirs))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", nargs="+", help="data files")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--longest", type=int, default=400, help="prompt tokens; longer are left out"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()

    model = ij.load_model(MODEL, dtype="float32")
    encoder = make_prompt_encoder(model, max_new_tokens=args.new_tokens)
    rows = [row for path in args.data for row in ij.read_examples(path, needs_output=False)]
    pairs = []
    for i, row in enumerate(row for row in rows if isinstance(row, ij.Example)):
        request = encode_prompt(encoder, row, i)
        ids = request.ids[: request.spans[-1][0]]
        if len(ids) <= args.longest:
            pairs.append((row, ids.tolist()))
    chosen = [pairs[i] for i in np.linspace(0, len(pairs) - 1, args.prompts).astype(int)]
    examples = [row for row, _ in chosen]
    samples = ij.sample(model, examples, temperature=0, max_new_tokens=args.new_tokens)
    scores = ij.score_requests(
        model,
        [
            ij.Request(
                ids=np.concatenate([np.array(ids, np.int32), row.token_ids]),
                spans=((len(ids), len(ids) + row.num_tokens),),
                num_bytes=0,
            )
            for (_, ids), row in zip(chosen, samples, strict=True)
        ],
    )
    apart = np.concatenate(
        [
            np.abs(scored.token_log_probs.astype(np.float64) - row.token_log_probs)
            for scored, row in zip(scores, samples, strict=True)
        ]
    )
    law4, over = float(apart.max()), int((apart > 1e-5).sum())
    stop_ids = list(model.tokenizer.eos_ids)
    job = {"max_new_tokens": args.new_tokens, "stop_ids": stop_ids}
    (theirs,) = run_generate("parity", [{**job, "prompts": [ids for _, ids in chosen]}])
    found = [
        compare(row.token_ids.tolist(), other["ids"], other["gaps"])
        for row, other in zip(samples, theirs, strict=True)
    ]
    counts = {kind: sum(k == kind for k, _ in found) for kind in ("same", "tie", "different")}
    compared = sum(tokens for _, tokens in found)
    print(
        f"{len(found)} prompts, {compared} tokens compared: {counts['same']} texts the same, "
        f"{counts['tie']} part at a tie within {TIE:g}, {counts['different']} differ; log-probs "
        f"within {law4:.2g} nats of those that scoring gives ({over} more than 1e-05 off, "
        f"root mean square {np.sqrt(np.mean(apart**2)):.2g})"
    )
    if args.out:
        about = {"model": MODEL, "prompts": len(found), "new_tokens": args.new_tokens, **counts}
        about |= {"tokens_compared": compared, "largest_difference_from_score_nats": law4}
        about |= {"more_than_1e-5_from_score": over}
        args.out.write_text(json.dumps(about, indent=1) + "\n")
    return 1 if counts["different"] or law4 > 1e-5 else 0


if __name__ == "__main__":
    sys.exit(main())
