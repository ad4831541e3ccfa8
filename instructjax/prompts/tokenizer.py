"""A tokenizer that says which bytes each of its tokens stands for."""

from __future__ import annotations

import copy
import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import tokenizers
from jaxtyping import Int32, Integer

from instructjax.errors import ModelError, PromptError, UsageError
from instructjax.prompts import vocabulary

Ids = Sequence[int] | Integer[np.ndarray, " n"]


@dataclass(frozen=True, eq=False, repr=False)
class Tokenizer:
    """A `tokenizers.Tokenizer` with the rules of one model around it.

    Special-token strings in a text become special ids, as in the reference tokenizers: that is
    how a rendered chat template gets its `<|im_start|>`. What a post-processor would add around
    a text (BOS, EOS) is never added here; the prompt layouts decide about it.

    Attributes:
      backend: the tokenizer proper. Truncation and padding are switched off on a copy.
      chat_template: the model's chat template (Jinja), or None for a base model.
      bos_id: the id of the token that begins a text, or None.
      eos_ids: every id that ends a response, the primary one first.
      adds_bos: whether the reference tokenizer puts BOS before plain text.
      special_ids: ids of control tokens; by default those the backend calls special, BOS and EOS.
      special_tokens: strings by the names templates know them by (`bos_token`, `eos_token`,
        `pad_token`...); BOS and the primary EOS are filled in where missing.
      sentencepiece: the `tokenizer.model` that came with it, for those who read no tokenizer.json.
      name: what to call it in messages.

    Raises:
      ModelError: an id out of range, or a tokenizer that is random (BPE dropout).

    >>> backend = tokenizers.Tokenizer(tokenizers.models.BPE(
    ...     {"h": 0, "i": 1, "Ġ": 2, "<eos>": 3, "Ã": 4, "©": 5}, []))
    >>> backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    >>> backend.decoder = tokenizers.decoders.ByteLevel()
    >>> backend.add_special_tokens(["<eos>"])
    1
    >>> tokenizer = Tokenizer(backend, eos_ids=(3,))
    >>> tokenizer.encode("hi hé<eos>")
    array([0, 1, 2, 0, 4, 5, 3], dtype=int32)
    >>> tokenizer.token_bytes(4), tokenizer.decode([0, 4, 5])
    (b'\\xc3', 'hé')
    """

    backend: tokenizers.Tokenizer
    _: KW_ONLY
    chat_template: str | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    adds_bos: bool = False
    special_ids: frozenset[int] | None = None
    special_tokens: Mapping[str, str] | None = None
    sentencepiece: bytes | None = None
    name: str = "tokenizer"

    def __post_init__(self) -> None:
        if getattr(self.backend.model, "dropout", None):
            raise ModelError(
                f"{self.name}: BPE dropout gives one text different ids from call to call",
                remedy="set `dropout` to null in tokenizer.json",
            )
        backend = self.backend
        if backend.truncation is not None or backend.padding is not None:
            backend = copy.deepcopy(backend)
            backend.no_truncation()
            backend.no_padding()
        eos_ids = tuple(dict.fromkeys(int(i) for i in self.eos_ids))
        ends = [] if self.bos_id is None else [self.bos_id]
        special = self.special_ids
        if special is None:
            added = backend.get_added_tokens_decoder().items()
            special = {i for i, token in added if token.special} | {*ends, *eos_ids}
        for field, value in {
            "backend": backend,
            "eos_ids": eos_ids,
            "special_ids": frozenset(special),
        }.items():
            object.__setattr__(self, field, value)
        for i in (*ends, *eos_ids):
            if not 0 <= i < self.vocab_size or not self._bytes[i]:
                raise ModelError(f"{self.name}: the special id {i} names no token of the tokenizer")
        names = dict(self.special_tokens or {})
        if self.bos_id is not None:
            names.setdefault("bos_token", self.token_text(self.bos_id))
        if eos_ids:
            names.setdefault("eos_token", self.token_text(eos_ids[0]))
        object.__setattr__(self, "special_tokens", names)

    @classmethod
    def from_transformers(
        cls, tokenizer: Any, *, eos_ids: Iterable[int] | None = None, name: str | None = None
    ) -> Tokenizer:
        """Wraps a fast tokenizer of transformers, without torch; the original is left alone.

        Args:
          tokenizer: a `PreTrainedTokenizerFast`.
          eos_ids: the model's `generation_config.eos_token_id`; the tokenizer's own EOS stays the
            primary one.
          name: what to call it in messages; `name_or_path` by default.

        Raises:
          ModelError: a tokenizer without a Rust backend, two tokens with one id, or a chat template
            that is no text.

        Of several chat templates the one called "default" counts; if none is, there is a warning
        and no template.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if not isinstance(backend, tokenizers.Tokenizer):
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} has no fast (Rust) backend, so the "
                "bytes of its tokens are not known",
                remedy="convert it to a tokenizer.json",
            )
        vocabulary.check_ids(backend)
        template = tokenizer.chat_template
        if isinstance(template, dict):
            if "default" not in template:
                warnings.warn(
                    f"the tokenizer has the chat templates {', '.join(sorted(template))}, and none "
                    "is called `default`: none is used. Layouts that need one can be given it as a "
                    "file: chat_template.jinja in the model's folder",
                    stacklevel=2,
                )
            template = template.get("default")
        if not isinstance(template, str | None):
            raise ModelError(
                f"the chat template is no text, but {template!r:.80}",
                remedy="correct `chat_template` in tokenizer_config.json",
            )
        bos_id = tokenizer.bos_token_id
        own_eos = tokenizer.eos_token_id
        plain = tokenizer("a")["input_ids"]
        bare = tokenizer("a", add_special_tokens=False)["input_ids"]
        strings = {k: v for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)}
        return cls(
            copy.deepcopy(backend),
            chat_template=template,
            bos_id=bos_id,
            eos_ids=(*(() if own_eos is None else (own_eos,)), *(eos_ids or ())),
            adds_bos=bos_id is not None and plain[:1] == [bos_id] and bare[:1] != [bos_id],
            special_tokens=strings,
            name=name or tokenizer.name_or_path or type(tokenizer).__name__,
        )

    @cached_property
    def _bytes(self) -> list[bytes]:
        return vocabulary.bytes_of_tokens(self.backend)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the greatest id, added tokens included."""
        return len(self._bytes)

    @property
    def eos_id(self) -> int | None:
        """The primary EOS id."""
        return self.eos_ids[0] if self.eos_ids else None

    @cached_property
    def added_tokens(self) -> dict[int, tokenizers.AddedToken]:
        """Tokens that are cut out of a text before anything else is done with it, by id."""
        return self.backend.get_added_tokens_decoder()

    @cached_property
    def _continuation_backend(self) -> tokenizers.Tokenizer:
        return vocabulary.without_prefix_space(self.backend)

    @property
    def has_prefix_space(self) -> bool:
        """Whether the tokenizer puts a space of its own before a text."""
        return self._continuation_backend is not self.backend

    def encode(self, text: str) -> Int32[np.ndarray, " n"]:
        """Token ids of a text of its own, nothing added before or after.

        Raises:
          PromptError: the text cannot be written as UTF-8 (a lone surrogate).
        """
        return self._encode(self.backend, text)

    def encode_continuation(self, text: str) -> Int32[np.ndarray, " n"]:
        """Token ids of a text that goes on another: no space of the tokenizer's own before it.

        Special-token strings in the text become special ids here too, as in the reference.

        Raises:
          PromptError: the text cannot be written as UTF-8.
        """
        return self._encode(self._continuation_backend, text)

    def _encode(self, backend: tokenizers.Tokenizer, text: str) -> Int32[np.ndarray, " n"]:
        try:
            ids = backend.encode(text, add_special_tokens=False).ids
        except (TypeError, ValueError) as error:
            if not isinstance(text, str):
                raise UsageError(f"a text is expected, not {type(text).__name__}") from error
            raise PromptError(
                "the text holds a lone surrogate and is no valid Unicode",
                remedy="repair the text where it was decoded",
            ) from error
        except Exception as error:  # tokenizers raises plain Exception, e.g. for a missing unk
            raise PromptError(f"{self.name} cannot encode the text: {error}") from error
        return np.asarray(ids, dtype=np.int32)

    def token_bytes(self, token_id: int | np.integer) -> bytes:
        """The bytes one token stands for in the middle of a text; b"" for an id without a token.

        Raises:
          UsageError: the id is outside the vocabulary.
        """
        if not 0 <= token_id < self.vocab_size:
            raise UsageError(f"{token_id} is no id of a vocabulary of {self.vocab_size} tokens")
        return self._bytes[token_id]

    def token_text(self, token_id: int | np.integer) -> str:
        """One token as text, bytes of an incomplete character written as `\\xe2`."""
        return self.token_bytes(token_id).decode("utf-8", errors="backslashreplace")

    def join_bytes(self, ids: Ids) -> bytes:
        """The bytes of several tokens, one after another."""
        return b"".join(map(self.token_bytes, ids))

    def decode(self, ids: Ids) -> str:
        """The text of several tokens; bytes that are no UTF-8 become U+FFFD."""
        return self.join_bytes(ids).decode("utf-8", errors="replace")

    def pieces(self, ids: Ids) -> list[str]:
        """Each token as text, to display one by one; see `token_text`."""
        return [self.token_text(i) for i in ids]

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, {self.vocab_size:,} tokens)"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides ids: the backend, BOS, EOS and special ids."""
        assert self.special_ids is not None
        rules = [self.bos_id, self.eos_ids, self.adds_bos, sorted(self.special_ids)]
        text = self.backend.to_str() + json.dumps(rules)
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def vocabulary_fingerprint(self) -> str:
        """SHA-256 of what each id stands for: alike where equal ids are equal text."""
        digest = hashlib.sha256()
        for piece in self._bytes:
            digest.update(len(piece).to_bytes(4, "little") + piece)
        return digest.hexdigest()

    @cached_property
    def template_fingerprint(self) -> str | None:
        """SHA-256 of the chat template, or None without one."""
        if self.chat_template is None:
            return None
        return hashlib.sha256(self.chat_template.encode()).hexdigest()
