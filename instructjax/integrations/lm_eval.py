"""`instructjax` as a model in lm-evaluation-harness, without PyTorch.

Importing this module registers it::

    import instructjax.integrations.lm_eval
    from lm_eval import simple_evaluate

    simple_evaluate(model="instructjax", model_args="pretrained=SPEC,dtype=float32", tasks=[...])

or make an `InstructJaxLM` and pass that as the model. The harness' own command line finds it if it
is imported first: `python -c "import instructjax.integrations.lm_eval, lm_eval.__main__ as m;
m.cli_evaluate()" --model instructjax --tasks ...`.

What is scored is exactly the harness' strings. Its own model `hf` differs in these respects:

- It encodes context and continuation as one string, cuts that where the context alone would end,
  and moves white space at the context's end into the continuation. Where a token spans the join,
  it scores another string; after a chat template, the template's newline is scored as part of y.
  Here the two are encoded each on its own (`boundary="exact"`), or as one string whose token over
  the join counts in y (`boundary="joint"`).
- Requests with the same ids but different splits share one cached result, from wrong positions.
  Here a request's number does not depend on the others.
- Windows of a rolling log-likelihood after the first lack BOS, and where the tokenizer adds BOS
  itself, the first has two. Here each window has one (`rolling_bos="every"`), or the first alone
  (`rolling_bos="first"`, for numbers to compare with those of `hf`).
- Contexts that are too long lose their beginning, BOS included. Here that is an error, or with
  `truncation="left"` BOS stays and the number of such requests is logged.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from instructjax.batching.prefix_tree import GrowingTree
from instructjax.display.progress import ScoringProgress
from instructjax.errors import UsageError
from instructjax.integrations import lm_eval_processes
from instructjax.integrations.conversations import render_conversation
from instructjax.integrations.lm_eval_generate import write_responses
from instructjax.integrations.lm_eval_requests import RequestEncoder
from instructjax.models.model import Model, load_model
from instructjax.prompts.options import Boundary, Truncation
from instructjax.prompts.request import Request
from instructjax.scoring.engine import ScoredRequest, Work, score_requests
from instructjax.sharding import choose_mesh
from instructjax.sharding.processes import several

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import LM, CacheHook
    from lm_eval.api.registry import register_model
except ImportError as error:
    if (error.name or "").partition(".")[0] != "lm_eval":
        raise
    raise UsageError(
        "lm-evaluation-harness is not installed", remedy='pip install "instructjax[lm-eval]"'
    ) from error

# After so many computed tokens the answers are put on disk, where a cache is used: a minute or two
# of a small model on a laptop. What prompts share is computed once a chunk, so it is not fewer.
CHUNK_TOKENS = 1 << 15

_log = logging.getLogger(__name__)
_NOTED = ("truncated", "spans_join", "double_space", "not_finite")
_IDENTITY = "instructjax"


class InstructJaxLM(LM):
    """log Pr(continuation | context), and responses, for lm-evaluation-harness.

    Of several processes (`instructjax.sharding.processes`), the harness runs in process 0, which
    calls `release` at the end; the others call `follow` in its place. They compute log-likelihoods
    together; responses are for one process.

    Args:
      pretrained: a model spec as `load_model` takes it, or a `Model`.
      dtype: of parameters and activations, for a spec.
      mesh: of the devices, such as "data=2,fsdp=4", for a spec.
      boundary: "exact" (context and continuation are encoded each on its own) or "joint".
      truncation: of contexts that are too long: "error", "left" or "middle".
      max_length: tokens of context and continuation together, and of a window of a rolling
        log-likelihood; by default all that the model takes.
      rolling_bos: which windows of a rolling log-likelihood begin with BOS: "every" or "first".
      batch_size, max_batch_size, device: of no effect. The harness gives them, its command line
        even "cuda:0" where there is no such device. Requests are packed by themselves, and JAX
        chooses the device (environment variable JAX_PLATFORMS).

    Raises:
      UsageError: an unknown option or model.
    """

    def __init__(
        self,
        pretrained: str | Path | Model = "smollm2-135m-instruct",
        *,
        dtype: str = "float32",
        mesh: str | None = None,
        boundary: Boundary = "exact",
        truncation: Truncation = "error",
        max_length: int | None = None,
        rolling_bos: Literal["every", "first"] = "every",
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
    ) -> None:
        super().__init__()
        # The harness bootstraps in forked processes, and a fork of a process that runs JAX may
        # never end.
        os.environ.setdefault("DISABLE_MULTIPROC", "1")
        self.model = (
            pretrained
            if isinstance(pretrained, Model)
            else load_model(pretrained, dtype=dtype, mesh=choose_mesh(mesh))
        )
        self._encoder = RequestEncoder(
            self.model,
            boundary=boundary,
            truncation=truncation,
            max_length=max_length,
            rolling_bos=rolling_bos,
        )
        self.work = Work()
        self.flags: Counter[str] = Counter()
        self.num_scored = self.num_written = self.num_new_tokens = 0

    # What the harness asks for.

    def loglikelihood(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """log Pr of each continuation after its context, and whether greedy decoding gives it.

        Raises:
          PromptError: a request cannot be encoded faithfully, or is too long; names its task and
            document.
        """
        answers = []
        for scored in self._score(self._encode_pairs(requests), len(requests), disable_tqdm):
            answer = (scored.log_prob, bool(scored.greedy.all()))
            answers.append(answer)
            args = requests[scored.request.row].args
            self.cache_hook.add_partial("loglikelihood", args, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log Pr of whole texts, window by window; see `cut_document`.

        Raises:
          DataError: a text is empty; names task and document.
          PromptError: a text cannot be encoded faithfully; names them too.
        """
        answers = []
        windows = self._score(self._encode_texts(requests), len(requests), disable_tqdm)
        for row, scored in itertools.groupby(windows, key=lambda window: window.request.row):
            answer = math.fsum(window.log_prob for window in scored)
            answers.append(answer)
            self.cache_hook.add_partial("loglikelihood_rolling", requests[row].args, answer)
        return answers

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each context, by the task's `generation_kwargs`.

        Raises:
          UsageError: `generation_kwargs` that cannot be done here.
          PromptError: a context cannot be encoded faithfully; names task and document.
        """
        if requests and several():
            lm_eval_processes.refuse_to_write(name_request(requests[0]))
        answers = [""] * len(requests)
        wanted: list[Any] = [(*request.args, name_request(request)) for request in requests]
        flags = Counter[str]()
        done = tokens = 0
        with ScoringProgress(len(requests), show=False if disable_tqdm else None) as bar:

            def tick(fresh: int) -> None:
                nonlocal tokens
                tokens += fresh
                bar.update(done, tokens)

            for texts in write_responses(self.model, self._encoder, wanted, on_tokens=tick):
                for i, text, noted in texts:
                    answers[i] = text
                    flags.update(flag.partition("=")[0] for flag in noted)
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                done += len(texts)
                if (cached := self.cache_hook.dbdict) is not None:
                    cached.commit()
        self.num_written += len(requests)
        self.num_new_tokens += tokens
        self._note(flags, len(requests))
        return answers

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of a conversation; see `render_conversation`."""
        return render_conversation(
            self.model.tokenizer, chat_history, add_generation_prompt=add_generation_prompt
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The model's chat template as Jinja text, "" for none."""
        if isinstance(chat_template, str):
            raise UsageError(
                f"there is no chat template called {chat_template!r}",
                remedy="a model has one here: ask for it with True (--apply-chat-template)",
            )
        return (self.model.tokenizer.chat_template or "") if chat_template else ""

    @property
    def tokenizer_name(self) -> str:
        """Names tokenizer and chat template, for the harness' cache of requests."""
        tokenizer = self.model.tokenizer
        template = tokenizer.template_fingerprint or "none"
        name = "".join(c if c.isalnum() or c in "-._" else "_" for c in tokenizer.name)
        return f"{name}-{tokenizer.fingerprint[:16]}-{template[:16]}"

    @property
    def max_length(self) -> int:
        """Tokens that are seen at once."""
        return self._encoder.max_length

    def get_model_info(self) -> dict[str, Any]:
        """What must be known to get the numbers again, for the results' `config`."""
        return {"instructjax": self._encoder.describe()}

    def set_cache_hook(self, cache_hook: CacheHook) -> None:
        """Takes a cache of answers, if they are this model's.

        The harness finds an answer by its strings alone, so those of another model would do.

        Raises:
          UsageError: the cache holds answers of another model, or of this one otherwise set.
        """
        answers: Any = cache_hook.dbdict
        if answers is not None:
            if len(answers) and answers.get(_IDENTITY) != self._identity:
                raise UsageError(
                    "the cache holds answers of another model or other options",
                    file=answers.filename,
                    remedy="give another --use-cache (in Python: use_cache), or remove that file",
                )
            answers[_IDENTITY] = self._identity
            answers.commit()
        super().set_cache_hook(cache_hook)

    def follow(self) -> None:
        """What processes other than 0 do: their part of all that it asks for, until `release`."""
        lm_eval_processes.follow(self.model)

    def release(self) -> None:
        """In process 0: lets the others go."""
        lm_eval_processes.release()

    # How it is done.

    @cached_property
    def _identity(self) -> str:
        """All that an answer depends on, beside its strings."""
        about = self._encoder.describe()
        names = ("model_fingerprint", "tokenizer_fingerprint", "template_fingerprint", "dtype")
        names += ("matmul_precision", "boundary", "truncation", "max_length", "rolling_bos")
        return json.dumps({name: about[name] for name in names})

    def _encode_pairs(self, requests: Sequence[Instance]) -> Iterator[Request]:
        for row, request in enumerate(requests):
            strings: Any = request.args
            name = name_request(request)
            yield self._encoder.encode_pair(*strings, row=row, name=name)

    def _encode_texts(self, requests: Sequence[Instance]) -> Iterator[Request]:
        for row, request in enumerate(requests):
            text: Any = request.args[0]
            yield from self._encoder.encode_text(text, row=row, name=name_request(request))

    def _score(
        self, requests: Iterable[Request], total: int, quiet: bool
    ) -> Iterator[ScoredRequest]:
        """Scores a stream in chunks; what was yielded of a chunk is on disk before the next."""
        stream, flags = iter(requests), Counter[str]()
        before, done = self.work.useful, 0
        with ScoringProgress(total, show=False if quiet else None) as bar:
            while chunk := _take(stream, CHUNK_TOKENS):
                for scored in self._score_chunk(chunk, done, before, bar):
                    flags.update(flag.partition("=")[0] for flag in scored.request.flags)
                    flags["not_finite"] += not math.isfinite(scored.log_prob)
                    yield scored
                done = chunk[-1].row + 1
                if (answers := self.cache_hook.dbdict) is not None:
                    answers.commit()
        self.num_scored += done
        self._note(flags, done)

    def _note(self, flags: Counter[str], total: int) -> None:
        noted = Counter({name: flags[name] for name in _NOTED if flags[name]})
        self.flags += noted
        if noted:
            counts = ", ".join(f"{count:,} {name}" for name, count in noted.most_common())
            _log.warning("of %s requests: %s", f"{total:,}", counts)

    def _score_chunk(
        self, chunk: Sequence[Request], first: int, before: int, bar: ScoringProgress
    ) -> Iterator[ScoredRequest]:
        finished = 0

        def tick(count: int) -> None:
            nonlocal finished
            finished += count
            rows = (chunk[-1].row + 1 - first) * finished // len(chunk)
            bar.update(first + rows, self.work.useful - before)

        lm_eval_processes.ask(chunk)
        return score_requests(self.model, chunk, work=self.work, on_row=tick)


# Not as a decorator: it is annotated as returning any LM, and the class would lose its type.
register_model("instructjax")(InstructJaxLM)


def name_request(request: Instance) -> str:
    """Where a request comes from, for a message: task, document and place in it.

    >>> name_request(Instance("loglikelihood", {}, ("a", "b"), 1, ("copa", 3, 1)))
    'task copa, document 3, request 1'
    """
    return f"task {request.task_name}, document {request.doc_id}, request {request.idx}"


def _take(stream: Iterator[Request], tokens: int) -> list[Request]:
    """The next requests, until so many distinct tokens are to be computed for them."""
    taken: list[Request] = []
    tree = GrowingTree()
    while tree.num_distinct < tokens and (request := next(stream, None)) is not None:
        tree.add(request)
        taken.append(request)
    return taken
