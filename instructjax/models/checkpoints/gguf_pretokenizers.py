"""How text is cut before byte-level BPE, for each name that `tokenizer.ggml.pre` may have.

GGUF files carry only the name; what it means is fixed by llama.cpp (`llama-vocab.cpp`) and by the
tokenizer.json of the models it was given for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, normalizers, pre_tokenizers

from instructjax.errors import ModelError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT = r"\p{N}"
# What Llama 3 and Qwen 2 share: contractions in either case, then words with one mark before
# them; and at the end marks with their line breaks, then white space.
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_MARKS = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_WORDS}|\p{{N}}{{1,3}}|{_MARKS}"
_QWEN2 = rf"{_WORDS}|\p{{N}}|{_MARKS}"
# Words end where capitals begin again. GPT-4o keeps a contraction with its word, Tekken does not.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_MARK = r"[^\r\n\p{L}\p{N}]?"
_CAPITALS = rf"{_MARK}{_UPPER}*{_LOWER}+", rf"{_MARK}{_UPPER}+{_LOWER}*"
_PATHS = _MARKS.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_GPT4O = rf"{_CAPITALS[0]}{_SHORT}|{_CAPITALS[1]}{_SHORT}|\p{{N}}{{1,3}}|{_PATHS}"
_TEKKEN = rf"{_CAPITALS[0]}|{_CAPITALS[1]}|\p{{N}}|{_PATHS}"
# DeepSeek-V3's three steps: numbers, Chinese and Japanese, and all else.
_CJK = r"[一-龥\u3040-ゟ゠-ヿ]+"
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """What one name stands for.

    Attributes:
      splits: patterns, applied one after another to the pieces that the one before left; matches
        and what lies between them become pieces.
      normalizer: applied to the text first.
      ignore_merges: a piece that is a token is taken whole, whether merges lead to it or not.
      adds_bos: whether BOS goes before plain text where the file does not say.
    """

    splits: tuple[str, ...]
    normalizer: normalizers.Normalizer | None = None
    ignore_merges: bool = False
    adds_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """The pre-tokenizer: the splits, then bytes as letters."""
        splits = [pre_tokenizers.Split(Regex(split), "isolated") for split in self.splits]
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*splits, to_bytes])


_GPT2_LIKE = PreTokenizer(splits=(_GPT2,))
_DIGITS_APART = PreTokenizer(splits=(_DIGIT, _GPT2))
_LLAMA3_LIKE = PreTokenizer(splits=(_LLAMA3,), ignore_merges=True, adds_bos=True)
_GPT4_LIKE = PreTokenizer(splits=(_LLAMA3,))
_QWEN2_LIKE = PreTokenizer(splits=(_QWEN2,), normalizer=normalizers.NFC())
_NEOX_LIKE = PreTokenizer(splits=(_GPT2,), normalizer=normalizers.NFC())
_GPT4O_LIKE = PreTokenizer(splits=(_GPT4O,))

PRE_TOKENIZERS = {
    "default": PreTokenizer(splits=(r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    "gpt-2": _GPT2_LIKE,
    "phi-2": _GPT2_LIKE,
    "olmo": _NEOX_LIKE,
    "mpt": _NEOX_LIKE,
    "smollm": _DIGITS_APART,
    "starcoder": _DIGITS_APART,
    "refact": _DIGITS_APART,
    "command-r": PreTokenizer(splits=(_DIGIT, _GPT2), normalizer=normalizers.NFC()),
    "llama3": _LLAMA3_LIKE,
    "llama-v3": _LLAMA3_LIKE,
    "llama-bpe": _LLAMA3_LIKE,
    "falcon3": _LLAMA3_LIKE,
    "pixtral": _LLAMA3_LIKE,
    "dbrx": _GPT4_LIKE,
    "smaug-bpe": _GPT4_LIKE,
    "qwen2": _QWEN2_LIKE,
    "deepseek-r1-qwen": _QWEN2_LIKE,
    "stablelm2": _QWEN2_LIKE,
    "gpt-4o": _GPT4O_LIKE,
    "llama4": _GPT4O_LIKE,
    "tekken": PreTokenizer(splits=(_TEKKEN,), ignore_merges=True, adds_bos=True),
    "deepseek-v3": PreTokenizer(splits=(r"\p{N}{1,3}", _CJK, _DEEPSEEK3)),
}


def pretokenizer_for(name: str | None, path: Path) -> PreTokenizer:
    """Look up a name of `tokenizer.ggml.pre`.

    Raises:
      ModelError: the file names none, or one that is not known: any guess would give other ids.

    >>> cut = pretokenizer_for("smollm", Path("model.gguf")).build()
    >>> [piece for piece, _ in cut.pre_tokenize_str("in 1984")]
    ['in', 'Ġ', '1', '9', '8', '4']
    """
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    raise ModelError(
        "the file does not name its pre-tokenizer (`tokenizer.ggml.pre`)"
        if name is None
        else f"the pre-tokenizer {name!r} is not supported, only {', '.join(PRE_TOKENIZERS)}",
        file=path,
        remedy="load the model from its Hugging Face folder",
    )
