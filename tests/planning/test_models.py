"""Known sizes against the parameter counts that their hub pages give for the weights."""

import json
from pathlib import Path

import pytest

from instructjax.errors import UsageError
from instructjax.models.load import load_checkpoint
from instructjax.planning.models import read_decoder_config
from instructjax.planning.sizes import SIZES

FIXTURES = Path(__file__).parents[1] / "fixtures"

# Of the safetensors files on the hub, a tied head counted once.
PUBLISHED = {
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
    "smollm2-1.7b": 1_711_376_384,
    "mistral-7b": 7_248_023_552,
    "mixtral-8x7b": 46_702_792_704,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    "qwen3-30b-a3b": 30_532_122_624,
    # In bfloat16, as its experts' own format packs several in a byte.
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    # Without the module that predicts a second token.
    "deepseek-v3": 671_026_419_200,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
}


@pytest.mark.parametrize("name", SIZES)
def test_known_sizes_have_the_published_number_of_parameters(name):
    assert read_decoder_config(name).num_params == PUBLISHED[name]


def test_a_folder_without_weights(tmp_path):
    folder = FIXTURES / "llama-untied"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    assert read_decoder_config(str(tmp_path)) == load_checkpoint(folder).config


def test_a_name_is_taken_from_a_folder_that_has_it(tmp_path, monkeypatch):
    values = json.loads((FIXTURES / "llama-tied" / "config.json").read_text())
    folder = tmp_path / "smollm2-135m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(values))
    monkeypatch.chdir(tmp_path)
    assert read_decoder_config("smollm2-135m").vocab_size == values["vocab_size"]


def test_near_names_are_told():
    with pytest.raises(UsageError, match="did you mean llama-3.1-8b"):
        read_decoder_config("lama-3.1-8b")
    with pytest.raises(UsageError, match="known: llama-3.1-8b, .*qwen3-32b"):
        read_decoder_config("zzz")
