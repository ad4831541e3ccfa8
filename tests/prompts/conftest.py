"""Small tokenizers, trained here on a few lines, and chat templates like those of known models."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from instructjax.prompts.tokenizer import Tokenizer

LINES = [
    "The capital of France is Paris. hello world peace, hello world.",
    "Summarize the key point of the following text. http://example.org and http://x.org",
    "Jupiter is the largest planet in the Solar System. Translate to French: good morning.",
    "user assistant system model You are a helpful assistant. think answer yes no",
    "日本語のテキスト und Größe, naïve café, Привет мир",
] * 4

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # Llama 3 writes BOS and trims every content.
    "trims": (
        "{% for message in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
        "<|im_start|>{{ message['role'] }}\n\n{{ message['content'] | trim }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
    ),
    # Gemma has no system role, wants turns to alternate, and calls the assistant "model".
    "no_system": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for message in messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<|im_start|>' + role + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>model\n' }}{% endif %}"
    ),
    # Qwen3 writes an empty thinking block before the last response, and drops earlier thinking.
    "thinking": (
        "{% for message in messages %}{% set content = message.content %}"
        "{% if message.role == 'assistant' %}"
        "{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}"
        "{{ '<|im_start|>assistant\n' }}"
        "{% if loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ content + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    # DeepSeek-R1 opens a thinking block in the generation prompt only.
    "opens_thinking": (
        "{% for message in messages %}{% if message.role == 'assistant' %}"
        "{{ '<|im_start|>assistant' + message.content + '<|im_end|>' }}"
        "{% else %}{{ '<|im_start|>user' + message.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<think>\n' }}{% endif %}"
    ),
    # Llama 2 has spaces around the response and no generation prompt of its own.
    "spaces": (
        "{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + message['content'] | trim + ' [/INST]' }}"
        "{% elif message['role'] == 'assistant' %}"
        "{{ ' ' + message['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "two_bos": "{{ bos_token }}{{ bos_token }}" + CHATML,
    "no_end": (
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    ),
    "drops_user": (
        "{% for message in messages %}{% if message['role'] == 'assistant' %}"
        "{{ '<|im_start|>assistant\n' + message['content'] + '<|im_end|>' }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "last_only": (
        "{{ '<|im_start|>user\n' + messages[-1]['content'] + '<|im_end|>\n' }}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "endless": "{% for i in range(10 ** 9) %}x{% endfor %}",
    "escapes": "{{ messages.__class__.__mro__ }}",
    "broken": "{% for message in messages %}{{ message.content }}",
}


def train_byte_level(
    normalizer: normalizers.Normalizer | None = None, add_prefix_space: bool = False
) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(LINES, trainer)
    return backend


def train_sentencepiece_like(scheme: str) -> tokenizers.Tokenizer:
    """BPE over "▁" with byte fallback; `scheme` says how the space before a text is made."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    # SentencePiece lets no token go on over a space.
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False
    )
    # Two of the lines only, so that other characters have no tokens but bytes.
    backend.train_from_iterator(LINES[:3], trainer)
    description = json.loads(backend.to_str())
    vocab = description["model"]["vocab"]
    for byte in range(256):
        vocab[f"<0x{byte:02X}>"] = len(vocab)
    description["model"]["byte_fallback"] = True
    description["pre_tokenizer"] = None
    description["decoder"] = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    if scheme != "prepend":
        description["normalizer"] = None
        description["pre_tokenizer"] = {
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False,
        }  # fmt: skip
    return tokenizers.Tokenizer.from_str(json.dumps(description))


@pytest.fixture(scope="session")
def templates() -> dict[str, str]:
    return TEMPLATES


@pytest.fixture(scope="session")
def byte_level() -> tokenizers.Tokenizer:
    return train_byte_level()


@pytest.fixture(scope="session")
def nfc_backend() -> tokenizers.Tokenizer:
    return train_byte_level(normalizers.NFC())


@pytest.fixture(scope="session")
def spaced_byte_level() -> tokenizers.Tokenizer:
    return train_byte_level(add_prefix_space=True)


@pytest.fixture(scope="session", params=["prepend", "first", "always"])
def sentencepiece_like(request: pytest.FixtureRequest) -> tokenizers.Tokenizer:
    return train_sentencepiece_like(request.param)


@pytest.fixture(scope="session")
def sentencepiece_prepend() -> tokenizers.Tokenizer:
    return train_sentencepiece_like("prepend")


@pytest.fixture(scope="session")
def make_tokenizer(byte_level: tokenizers.Tokenizer) -> Callable[..., Tokenizer]:
    """ChatML ids: <|endoftext|> 0 is BOS, <|im_start|> 1, <|im_end|> 2 ends a turn."""

    def make(template: str | None = "chatml", **changes: object) -> Tokenizer:
        settings: dict = {
            "chat_template": None if template is None else TEMPLATES[template],
            "bos_id": 0,
            "eos_ids": (2,),
            "name": "small",
        }
        return Tokenizer(byte_level, **{**settings, **changes})

    return make


@pytest.fixture(scope="session")
def make_spaced_tokenizer(sentencepiece_like: tokenizers.Tokenizer) -> Callable[..., Tokenizer]:
    """SentencePiece-like: <unk> 0, <s> 1 is BOS, </s> 2 is EOS."""

    def make(template: str | None = "spaces", **changes: object) -> Tokenizer:
        settings: dict = {
            "chat_template": None if template is None else TEMPLATES[template],
            "bos_id": 1,
            "eos_ids": (2,),
            "adds_bos": True,
            "name": "spaced",
        }
        return Tokenizer(sentencepiece_like, **{**settings, **changes})

    return make
