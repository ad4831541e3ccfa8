"""Steps with micro-batches compile for TPUs, head and embedding apart or not."""

from __future__ import annotations

import importlib.util

import pytest

from instructjax.models.config import DecoderConfig
from instructjax.planning.plan import make_plan
from instructjax.planning.setting import Setting
from instructjax.planning.topology import parse_topology


@pytest.mark.tpu
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="needs libtpu")
@pytest.mark.parametrize("mesh", [{"fsdp": 4}, {"fsdp": 2, "tensor": 2}, {"data": 2, "fsdp": 2}])
@pytest.mark.parametrize("tied", [True, False])
def test_micro_batches_compile(mesh: dict[str, int], tied: bool) -> None:
    config = DecoderConfig(
        family="llama",
        vocab_size=256,
        hidden_size=512,
        intermediate_size=1024,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=128,
        norm_eps=1e-5,
        max_positions=4096,
        tie_embeddings=tied,
    )
    setting = Setting(mesh=mesh, batch=16, micro_batches=2, length=256, dtype="bfloat16")
    assert make_plan("tiny", config, parse_topology("v5e:2x2"), setting).source == "compiled"
