"""What we pass over in a configuration changes nothing that transformers computes."""

from __future__ import annotations

import copy
import inspect
import json
import re
import sys
from pathlib import Path

import pytest

from instructjax.errors import ModelError
from instructjax.models.families import FAMILIES, family_for_hf
from instructjax.models.families.to_hf import config_to_hf

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.filterwarnings("ignore")]

FOLDER = Path(__file__).parents[1] / "fixtures" / "families"
NAMES = sorted(
    file.parent.name
    for file in FOLDER.glob("*/config.json")
    if "quantization_config" not in file.read_text()
)
# Of classes and files, then of what is returned.
FILE = {"architectures", "model_type", "transformers_version", "torch_dtype", "dtype"}
OTHERS = FILE | {
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "use_cache",
    "problem_type",
}
OTHERS |= {"bos_token_id", "eos_token_id", "pad_token_id", "id2label", "label2id", "to_dict"}
ROPE = ("factor", "beta_fast", "beta_slow", "truncate", "mscale", "mscale_all_dim")
ROPE += ("attention_factor", "partial_rotary_factor", "original_max_position_embeddings")


def others(value):
    """Other values, of the same kind if there is one."""
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, 2 * value + 2]
    if isinstance(value, float):
        return [1.5 * value + 0.5]
    return [3, True, 0.5] if value is None else []


def variants(values, defaults, source):
    """Every option of the file, of the class and of the code, changed: (name, new value)."""
    read = set(re.findall(r"config\.([a-z]\w*)", source))
    read |= set(re.findall(r'getattr\((?:self\.)?config, "(\w+)"', source))
    for name in sorted({*values, *defaults, *read} - OTHERS):
        yield from ((name, new) for new in others(values.get(name, defaults.get(name))))
    rope = values.get("rope_parameters") or {}
    nested = {kind: inner for kind, inner in rope.items() if isinstance(inner, dict)}
    for kind, inner in nested.items() or [(None, rope)]:
        for name in {**inner, **dict.fromkeys(ROPE)}:
            for new in others(inner.get(name)):
                changed = {**inner, name: new}
                yield "rope_parameters", changed if kind is None else {**rope, kind: changed}


def in_pytorch(family, folder, *, strict):
    """(transformers' model of a folder, logits of its tensors under other values)."""
    torch = pytest.importorskip("torch")
    from transformers import AutoConfig, AutoModelForCausalLM

    ids = torch.randint(3, 80, (1, 60), generator=torch.Generator().manual_seed(0))
    kept = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def logits(values):
        given = {key: copy.deepcopy(v) for key, v in values.items() if key not in FILE}
        given = AutoConfig.for_model(family.model_type, **given, attn_implementation="eager")
        torch.manual_seed(0)  # of tensors that only the model with other values has
        model = AutoModelForCausalLM.from_config(given, dtype=torch.float32).eval()
        model.load_state_dict(kept.state_dict(), strict=strict)
        with torch.no_grad():
            return model(ids, use_cache=False).logits

    return kept, logits


@pytest.mark.parametrize("name", NAMES)
def test_what_is_passed_over_changes_nothing(name):
    from transformers import AutoConfig

    file = FOLDER / name / "config.json"
    values = json.loads(file.read_text())
    family = family_for_hf(values, file)
    config = family.config_from_hf(values, file)
    kept, logits = in_pytorch(family, file.parent, strict=True)
    before = logits(values)
    assert before.abs().max() > 1
    source = inspect.getsource(sys.modules[type(kept).__module__])
    passed_over = 0
    for option, new in variants(values, AutoConfig.for_model(family.model_type).to_dict(), source):
        other = {**values, option: new}
        try:
            same = family.config_from_hf(other, file) == config
        except ModelError:
            continue
        if not same:
            continue
        try:
            after = logits(other)
        except Exception:  # transformers does not take it, so it gives no number to compare with
            continue
        passed_over += 1
        assert (after - before).abs().max() < 1e-5, f"{option} = {new!r}"
    assert passed_over


@pytest.mark.parametrize("name", NAMES)
def test_null_is_what_transformers_takes(name):
    """Or refused: an option that is null is often not what it is when it is left out."""
    from transformers import AutoConfig

    file = FOLDER / name / "config.json"
    values = json.loads(file.read_text())
    family = family_for_hf(values, file)
    _, logits = in_pytorch(family, file.parent, strict=False)
    compared = 0
    rope = values.get("rope_parameters") or {}
    if rope.get("rope_type") == "yarn":  # whose flag is within
        null = {**values, "rope_parameters": {**rope, "truncate": None}}
        found = config_to_hf(family, family.config_from_hf(null, file))
        assert (logits(found) - logits(null)).abs().max() < 1e-5
    for option in sorted({*values, *AutoConfig.for_model(family.model_type).to_dict()} - OTHERS):
        null = {**values, option: None}
        try:
            found = config_to_hf(family, family.config_from_hf(null, file))
        except ModelError:
            continue
        try:
            wanted = logits(null)
        except Exception:  # transformers does not take it, so it gives no number to compare with
            continue
        compared += 1
        assert (logits(found) - wanted).abs().max() < 1e-5, option
    assert compared


def test_every_family_is_shown():
    kinds = {json.loads((FOLDER / n / "config.json").read_text())["model_type"] for n in NAMES}
    assert kinds == {family.model_type for family in FAMILIES}
