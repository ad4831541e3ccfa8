"""transformers `generate` in a process of its own: reads prompts from stdin, writes JSON.

The same weights (the GGUF file, through transformers' own reader), float32, greedy. With `time` it
tries the caches and compilation settings there are, and says how long each took.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from torch_peers import load


def generate(model: Any, tokenizer: Any, prompts: list[list[int]], job: dict[str, Any], **more):
    """Greedy tokens after each prompt, left-padded as `generate` wants it, with logits."""
    import torch

    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.eos_token_id)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, width - len(prompt) :] = 1
    with torch.no_grad():
        return model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=job["max_new_tokens"],
            min_new_tokens=job.get("min_new_tokens"),
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=job["stop_ids"],
            pad_token_id=tokenizer.eos_token_id,
            return_dict_in_generate=True,
            output_logits=job.get("logits", False),
            **more,
        ), width


def run_parity(model: Any, tokenizer: Any, job: dict[str, Any]) -> list[dict[str, Any]]:
    """Of each prompt alone: greedy ids, and in each place the gap to the next best logit."""
    found = []
    for prompt in job["prompts"]:
        out, width = generate(model, tokenizer, [prompt], {**job, "logits": True})
        best = [logits[0].topk(2).values for logits in out.logits]
        ids = out.sequences[0, width:].tolist()
        found.append({"ids": ids, "gaps": [float(top[0] - top[1]) for top in best]})
    return found


def run_time(model: Any, tokenizer: Any, job: dict[str, Any]) -> dict[str, float]:
    """Seconds of the fastest of several calls, by cache."""
    seconds = {}
    for cache in job["caches"]:
        more = {} if cache == "dynamic" else {"cache_implementation": cache}
        best = float("inf")
        for _ in range(job["repeats"]):
            start = time.perf_counter()
            out, width = generate(model, tokenizer, job["prompts"], job, **more)
            best = min(best, time.perf_counter() - start)
            assert out.sequences.shape[1] - width == job["max_new_tokens"]
        seconds[cache] = best
    return seconds


def main() -> None:
    jobs = json.load(sys.stdin)
    model, tokenizer = load(jobs["gguf"], jobs["threads"], "float32")
    run = {"parity": run_parity, "time": run_time}[jobs["do"]]
    json.dump([run(model, tokenizer, job) for job in jobs["jobs"]], sys.stdout)


if __name__ == "__main__":
    main()
