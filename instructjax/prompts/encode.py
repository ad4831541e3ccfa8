"""Examples in, requests out: ids with the spans that are y."""

from __future__ import annotations

import hashlib
from datetime import date

from instructjax.data.example import Example
from instructjax.errors import PromptError
from instructjax.prompts.assemble import assemble_rows
from instructjax.prompts.given import encode_given
from instructjax.prompts.layouts import FileLayout, make_layout
from instructjax.prompts.options import PromptOptions
from instructjax.prompts.parts import Parts, select_parts
from instructjax.prompts.prepare import PromptBuilder
from instructjax.prompts.request import Request
from instructjax.prompts.tokenizer import Tokenizer
from instructjax.prompts.truncation import TooLong


class PromptEncoder:
    """Turns examples into requests, by the rules of one model and one set of options.

    Safe to use from several threads.

    Args:
      tokenizer: of the model.
      options: how c, z and y become ids.
      vocab_size: how many ids the model knows, for ids given directly; the tokenizer's by default.
      max_positions: the longest sequence of the model, beyond which no one is told to go.

    Raises:
      UsageError: a layout file that cannot be read.

    >>> import tokenizers
    >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1, "c": 2, "$": 3}, []))
    >>> options = PromptOptions(layout="raw")
    >>> encoder = PromptEncoder(Tokenizer(backend, eos_ids=(3,)), options)
    >>> example = Example(instruction="ab", input="a", output=["c", "cc"])
    >>> [(r.ids.tolist(), r.spans) for r in encoder.encode(example, row=0)]
    [([0, 1, 0, 2, 3], ((3, 5),)), ([0, 1, 0, 2, 2, 3], ((3, 6),))]
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        options: PromptOptions | None = None,
        *,
        vocab_size: int | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.options = options or PromptOptions()
        self._vocab_size = vocab_size or tokenizer.vocab_size
        self._max_positions = max_positions
        self._layout = make_layout(tokenizer, self.options)
        self._builder = PromptBuilder(tokenizer, self._layout, self.options)
        self._passes = False

    def encode(self, example: Example, *, row: int, context: str = "cz") -> list[Request]:
        """A request for each candidate y, in order.

        `Request.flags` may hold "truncated=N" (N prompt tokens cut), "spans_join" (a token holds
        characters of prompt and y), "special_in_text" (c, z, y or the history spell a control
        token, which is encoded as one, as reference tokenizers do), "double_space" (white space
        on both sides of the join) and "history_rewritten" (the chat template changed an earlier
        assistant turn, as templates do that drop old thinking).

        Args:
          example: text, or token ids.
          row: index of the example in the input.
          context: which of c and z the prompt holds: "cz", "c", "z" or "none". System turn and
            history stay. A user turn may become empty; a prompt without any text is BOS alone, or
            EOS for a model without BOS.

        Raises:
          PromptError: the example cannot be encoded faithfully; names the row.
          UsageError: an unknown context.
        """
        try:
            if example.prompt_ids is not None or example.output_ids is not None:
                return encode_given(
                    self.tokenizer,
                    example,
                    row=row,
                    context=context,
                    vocab_size=self._vocab_size,
                    max_length=self.options.max_length,
                )
            return self._encode_text(example, row, context)
        except PromptError as error:
            remedy = error.remedy
            if isinstance(error, TooLong) and self.options.max_length != self._max_positions:
                remedy = f"raise max_length, or {remedy}"
            raise PromptError(
                error.message,
                file=error.file,
                row=example.id or f"row {row + 1}",
                remedy=remedy,
            ) from error

    def _encode_text(self, example: Example, row: int, context: str) -> list[Request]:
        outputs = example.outputs
        if not outputs:
            raise PromptError("there is no response", remedy="give `output`")
        builder = self._builder
        prompt = builder.build(select_parts(example, context))
        names = (
            ["the response"]
            if len(outputs) == 1
            else [f"response {k + 1} of {len(outputs)}" for k in range(len(outputs))]
        )
        responses = [
            builder.response(y, prompt.eos_id, name=name)
            for y, name in zip(outputs, names, strict=True)
        ]
        rows = assemble_rows(self.tokenizer, self._layout, self.options, prompt, responses)
        earlier = sum(len(turn.text.encode()) for turn in prompt.segments if turn.scored)
        ends_in_space = prompt.frames[-1][-1:].isspace()
        requests = []
        for k, (made, response) in enumerate(zip(rows, responses, strict=True)):
            flags = [*prompt.flags, *made.flags]
            if "special_in_text" not in flags and builder.spells_special([outputs[k]]):
                flags.append("special_in_text")
            if ends_in_space and response.text[:1].isspace():
                flags.append("double_space")
            requests.append(
                Request(
                    ids=made.ids,
                    spans=made.spans,
                    num_bytes=earlier + len(response.text.encode()),
                    row=row,
                    candidate=k,
                    context=context,
                    flags=tuple(flags),
                )
            )
        return requests

    def check(self) -> None:
        """Raises a PromptError if no text at all can be encoded, as without a chat template.

        For whoever finds that a row cannot be: what no text could pass is no fault of the row.
        """
        if not self._passes:
            self._builder.build(Parts(instruction="c", input="z"))
            self._passes = True

    def describe(self) -> dict[str, str]:
        """The rules by which prompts are made, for the metadata of a result.

        `bos` is "layout <s>" (the template or text writes it), "added <s>" or "none". `date` is
        there only if the template reads the clock, so that prompts differ from day to day.
        """
        options, tokenizer = self.options, self.tokenizer
        described = {
            "tokenizer": tokenizer.name,
            "tokenizer_fingerprint": tokenizer.fingerprint,
            "vocabulary_fingerprint": tokenizer.vocabulary_fingerprint,
            "template_fingerprint": tokenizer.template_fingerprint or "none",
            "layout": str(options.layout),
            "boundary": options.boundary,
            "truncation": options.truncation,
            "max_length": "none" if options.max_length is None else str(options.max_length),
            "turns": options.turns,
            "include_eos": str(options.include_eos).lower(),
        }
        template = (tokenizer.chat_template or "") if options.uses_chat_template else ""
        if isinstance(self._layout, FileLayout):
            template = self._layout.template
            described["layout_fingerprint"] = hashlib.sha256(template.encode()).hexdigest()
        if "strftime_now" in template:
            described["date"] = date.today().isoformat()
        try:
            prompt = self._builder.build(Parts(instruction="c", input="z"))
        except PromptError as error:
            return {**described, "bos": f"unknown: {error}", "eos": f"unknown: {error}"}
        bos = self._builder.bos_text
        if prompt.prefix_id is not None:
            described["bos"] = f"added {tokenizer.token_text(prompt.prefix_id)}"
        elif bos and prompt.frames[0].startswith(bos):
            described["bos"] = f"layout {bos}"
        else:
            described["bos"] = "none"
        eos = "none" if prompt.eos_id is None else tokenizer.token_text(prompt.eos_id)
        return {**described, "eos": eos}
