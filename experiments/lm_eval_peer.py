"""lm-evaluation-harness' own model `hf` in a process of its own: a job from stdin, JSON out.

Runs the tasks as anyone would, then the same requests without its cache of logits, then its network
on token ids that are given: those that instructjax scores; and once more in float64 those of them
that come out otherwise than given. Needs PyTorch, and not instructjax.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

Key = str


def name(request: Any) -> Key:
    return f"{request.task_name} {request.doc_id} {request.idx}"


def main() -> None:
    import lm_eval
    import torch
    from lm_eval.models import huggingface
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    job = json.load(sys.stdin)
    # Decorators of the harness hide what these take.
    HFLM: Any = huggingface.HFLM
    simple_evaluate: Any = lm_eval.simple_evaluate
    torch.set_num_threads(job["threads"])
    asked: dict[str, list[Any]] = {"loglikelihood": [], "loglikelihood_rolling": []}
    found: dict[Key, float] = {}

    class Recorder(HFLM):
        def loglikelihood(self, requests, disable_tqdm=True):
            answers = super().loglikelihood(requests, disable_tqdm=True)
            asked["loglikelihood"] += requests
            found.update((name(r), a[0]) for r, a in zip(requests, answers, strict=True))
            return answers

        def loglikelihood_rolling(self, requests, disable_tqdm=True):
            answers = super().loglikelihood_rolling(requests, disable_tqdm=True)
            asked["loglikelihood_rolling"] += requests
            found.update((name(r), a) for r, a in zip(requests, answers, strict=True))
            return answers

    lm = Recorder(
        pretrained=job["model"],
        dtype="float32",
        device="cpu",
        batch_size=job["batch_size"],
        max_length=job["max_length"],
    )
    manager = TaskManager(include_path=job["folder"], include_defaults=False)
    results = simple_evaluate(
        model=lm, task_manager=manager, bootstrap_iters=0, log_samples=False, **job["options"]
    )

    pairs = {}
    for request in asked["loglikelihood"]:
        context, continuation = request.args
        if context:
            pairs[name(request)] = [lm._encode_pair(context, continuation)]
        else:
            ids = lm.tok_encode(continuation, add_special_tokens=False)
            pairs[name(request)] = [([lm.prefix_token_id], ids)]
    for request in asked["loglikelihood_rolling"]:
        ids = lm.tok_encode(request.args[0])
        windows = get_rolling_token_windows(ids, lm.prefix_token_id, lm.max_length, 1)
        pairs[name(request)] = [make_disjoint_window(window) for window in windows]
    lm.logits_cache = False
    again = HFLM.loglikelihood(lm, asked["loglikelihood"], disable_tqdm=True)
    uncached = {name(r): a[0] for r, a in zip(asked["loglikelihood"], again, strict=True)}

    def score(keys: Iterable[Key]) -> dict[Key, float]:
        flat = [(key, pair) for key in keys for pair in job["pairs"][key]]
        given = [((str(i), ""), *pair) for i, (_, pair) in enumerate(flat)]
        sums = dict.fromkeys(keys, 0.0)
        scored = lm._loglikelihood_tokens(given, disable_tqdm=True)
        for (key, _), (value, _) in zip(flat, scored, strict=True):
            sums[key] += value
        return sums

    on_given = score(job["pairs"])
    apart = [
        key
        for key, value in job["found"].items()
        if max(abs(value - on_given[key]), abs(value - found[key])) > job["limit"]
    ]
    lm._model = lm.model.double()

    everything = asked["loglikelihood"] + asked["loglikelihood_rolling"]
    answer = {
        "strings": {name(request): request.args for request in everything},
        "found": found,
        "uncached": uncached,
        "pairs": pairs,
        "on_given_ids": on_given,
        "float64": score(apart),
        "results": {task: str(values) for task, values in results["results"].items()},
    }
    print("RESULT " + json.dumps(answer))


if __name__ == "__main__":
    main()
