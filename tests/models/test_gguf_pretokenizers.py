"""How text is cut for each name of `tokenizer.ggml.pre`: literals, transformers and llama.cpp."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from instructjax.models.checkpoints.gguf_file import read_gguf_file
from instructjax.models.checkpoints.gguf_pretokenizers import PRE_TOKENIZERS, pretokenizer_for
from instructjax.models.checkpoints.gguf_tokenizer import tokenizer_from_gguf

TEXTS = [
    "in 1984\n\n5 12345",
    "you're IT'S we'LL don't",
    "日本の首都は東京です。",
    "a  b   c    \n  d \t e ",
    "\r\n\r\nx  \n\n\n y ",
    "Größe déjà-vu naïve",
    "f(x)=y+2;//ok\n/*!*/",
    "HTTPServer fooBarBaz XMLa",
    "...///\r\n--\n",
    "1٣Ⅷ² 99%",
    "I'm 'so' ’s",
    "😀👍🏽 ok",
    "한국어 テスト カ12あ",
    " leading and trail ",
    "$5.00 <a>^~|`",
    "A'b C'S x's'S",
    # From the text by whose ids llama.cpp's converter tells pre-tokenizers apart.
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n",
    "🚀 (normal) 😶\u200d🌫️ (multiple",
    "✅ 🦙🦙 3 33 333 3333 33333 333333",
    "3.3 3..3 3...3 ok",
    "?我想在apple工作1314151天～",
    "------======= нещо на Бъ",
    '```````""""......!!!!!!??????',
    "I've been 'told he's there, 'RE you",
    "sure? 'M not We'Ve a'lL",
    # Spaces and letters of other kinds.
    "\u00a0\u3000x\u2028y\u200b",
    "עברית العربية ١٢٣",
    "if x==1:\r\n\t\tpass # é\n\n\n}",
    "ﬀ№①½𝟙𝒜 a\u00ad_b__c9_9",
    "ไทย 한글1 ㄱ",
    "x\ty\u000bz\u000c\u0085w",
]
# Where llama.cpp does not do as the models' own tokenizers: it does not compose characters, and
# takes capitals and marks beyond ASCII for something else.
BEYOND = ["e\u0301a\u0308", "ÉCOLE Étude", "नमस्ते", "កាន់តែពិសេសអាច😁"]


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        ("command-r", "in 1984", ["in", " ", "1", "9", "8", "4"]),
        ("olmo", "in 1984\n\n5", ["in", " 1984", "\n", "\n", "5"]),
        ("dbrx", "in 1984\n\n5", ["in", " ", "198", "4", "\n\n", "5"]),
        ("smaug-bpe", "IT'S (ok)!\n", ["IT", "'S", " (", "ok", ")!\n"]),
        ("stablelm2", "in 1984", ["in", " ", "1", "9", "8", "4"]),
        ("gpt-4o", "fooBar you'LL 1984", ["foo", "Bar", " you'LL", " ", "198", "4"]),
        ("gpt-4o", "ÉCOLE //\n/a", ["ÉCOLE", " //\n/", "a"]),
        ("tekken", "fooBar you'll 19", ["foo", "Bar", " you", "'ll", " ", "1", "9"]),
        ("deepseek-v3", "首都カa b1984", ["首都カ", "a", " b", "198", "4"]),
        ("deepseek-v3", "#tag  x!!\n", ["#tag", " ", " x", "!!\n"]),
    ],
)
def test_how_text_is_cut(pre, text, cut):
    build = pretokenizer_for(pre, Path("model.gguf")).build()
    assert [text[start:stop] for _, (start, stop) in build.pre_tokenize_str(text)] == cut


@settings(deadline=None, max_examples=60)
@given(
    st.text(alphabet="aBéÉ's1٣ \n\t.,/日カ\u0301😀", max_size=14) | st.sampled_from(TEXTS + BEYOND)
)
def test_transformers_cuts_alike(text):
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    shared = PRE_TOKENIZERS.keys() & mapping.GGUF_PRE_TOKENIZER_SPLITS.keys()
    assert {"gpt-4o", "tekken", "dbrx", "smaug-bpe", "llama-bpe", "qwen2"} <= shared
    for name in shared:
        theirs = pre_tokenizers.Split(Regex(mapping.GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated")
        ours = PRE_TOKENIZERS[name].build().pre_tokenize_str(text)
        assert [at for _, at in ours] == [at for _, at in theirs.pre_tokenize_str(text)], name


def write_vocabulary(path: Path, pre: str) -> Path:
    """A file of a vocabulary in which whatever is not cut apart is one token.

    Every piece of every text is a token, and every pair of neighbouring pieces merges.
    """
    tokens = dict.fromkeys(["<bos>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    merges: dict[str, None] = {}
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for text in TEXTS:
        letters = "".join(piece for piece, _ in to_bytes.pre_tokenize_str(text))
        for size in range(2, len(letters) + 1):
            for start in range(len(letters) - size + 1):
                piece = letters[start : start + size]
                tokens[piece] = None
                merges |= dict.fromkeys(f"{piece[:i]} {piece[i:]}" for i in range(1, size))
    tokens["qqq"] = None  # no merge leads to it
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.slow
@pytest.mark.llama_cpp
@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_llama_cpp_gives_the_same_ids(pre, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    path = write_vocabulary(tmp_path / "vocabulary.gguf", pre)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = tokenizer_from_gguf(read_gguf_file(path).metadata, path)
    for text in [*TEXTS, "qqq"]:
        wanted = theirs.tokenize(text.encode(), add_bos=False, special=False)
        assert ours.encode(text).tolist() == wanted, text
    assert ours.adds_bos == (theirs.tokenize(b"a", add_bos=True)[0] == 0)
