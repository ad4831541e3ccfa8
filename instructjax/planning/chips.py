"""What chips can do, from their makers' public data sheets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = float(1 << 30)
# XLA_PYTHON_CLIENT_MEM_FRACTION where it is not set.
GPU_TAKEN = 0.75
# Of bfloat16 in a product of float32 with `jax.lax.Precision.HIGHEST` on TPUs.
_PASSES = 6
_CLOUD = "https://cloud.google.com/tpu/docs/"
_BOOK = "https://jax-ml.github.io/scaling-book/tpus"
_XLA = "xla/backends/gpu/target_config/specs"
_NVIDIA = "https://www.nvidia.com/en-us/data-center/"


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One device as JAX shows it. Of TPU7x that is half a chip, of v4 a whole one (megacore).

    Attributes:
      name: as topologies begin with, such as "v5e".
      label: for people.
      platform: whose compiler it needs.
      memory: bytes that a program may use: of TPUs what libtpu says it has, a little less than the
        data sheet does; of GPUs what the driver does; 0 where that is not known.
      taken: share of it that JAX takes unless it is told otherwise.
      flops: bfloat16 operations a second at most.
      float32: operations of its float32 cores a second at most, of GPUs.
      bandwidth: of memory, bytes a second.
      link: bytes a second to a neighbour, one way; of GPUs, to all others of the node together.
      network: bytes a second to other slices or nodes, one way.
      dims: of the torus that TPUs form; 0: every device of a node reaches every other.
      parts: devices a chip.
      most: chips of the largest slice, of TPUs in three dimensions.
      source: where the numbers are from.
    """

    name: str
    label: str
    platform: Literal["tpu", "gpu", "cpu"]
    memory: float = 0.0
    taken: float = 1.0
    flops: float = 0.0
    float32: float = 0.0
    bandwidth: float = 0.0
    link: float = 0.0
    network: float = 0.0
    dims: int = 0
    parts: int = 1
    most: int = 0
    source: str = ""

    def rate(self, dtype: str) -> float:
        """Operations of products a second at most; 0 where it is not known.

        Products of float32 are not rounded: a TPU makes each of six of bfloat16, a GPU goes without
        its tensor cores.

        >>> CHIPS["v5e"].rate("bfloat16") / CHIPS["v5e"].rate("float32")
        6.0
        """
        if dtype != "float32":
            return self.flops
        return self.flops / _PASSES if self.platform == "tpu" else self.float32


CHIPS = {
    chip.name: chip
    for chip in (
        Chip(
            name="v4",
            label="TPU v4",
            platform="tpu",
            memory=30.75 * GIB,
            flops=275e12,
            bandwidth=1.2e12,
            link=50e9,
            network=6.25e9,
            dims=3,
            most=4096,
            source=f"{_CLOUD}v4, network {_BOOK}",
        ),
        Chip(
            name="v5e",
            label="TPU v5e",
            platform="tpu",
            memory=15.75 * GIB,
            flops=197e12,
            bandwidth=819e9,
            link=50e9,
            network=3.125e9,
            dims=2,
            source=f"{_CLOUD}v5e",
        ),
        Chip(
            name="v5p",
            label="TPU v5p",
            platform="tpu",
            memory=95.74 * GIB,
            flops=459e12,
            bandwidth=2765e9,
            link=100e9,
            network=6.25e9,
            dims=3,
            most=6144,
            source=f"{_CLOUD}v5p, network {_BOOK}",
        ),
        Chip(
            name="v6e",
            label="TPU v6e",
            platform="tpu",
            memory=31.25 * GIB,
            flops=918e12,
            bandwidth=1640e9,
            link=100e9,
            network=12.5e9,
            dims=2,
            source=f"{_CLOUD}v6e, network {_BOOK}",
        ),
        Chip(
            name="tpu7x",
            label="TPU7x",
            platform="tpu",
            memory=96 * GIB,
            flops=2307e12 / 2,
            bandwidth=7380e9 / 2,
            link=100e9 / 2,
            network=12.5e9 / 2,
            dims=3,
            parts=2,
            most=9216,
            source=f"{_CLOUD}tpu7x",
        ),
        Chip(
            name="a100",
            label="A100 SXM 80GB",
            platform="gpu",
            memory=85100068864.0,
            taken=GPU_TAKEN,
            flops=312e12,
            float32=19.5e12,
            bandwidth=2039e9,
            link=300e9,
            network=25e9,
            source=f"{_NVIDIA}a100, memory {_XLA}, network: DGX A100",
        ),
        Chip(
            name="h100",
            label="H100 SXM 80GB",
            platform="gpu",
            memory=84942979072.0,
            taken=GPU_TAKEN,
            flops=989e12,
            float32=67e12,
            bandwidth=3350e9,
            link=450e9,
            network=50e9,
            source=f"{_NVIDIA}h100, memory {_XLA}, network: DGX H100",
        ),
        Chip(
            name="b200",
            label="B200 SXM 180GB",
            platform="gpu",
            memory=191514411008.0,
            taken=GPU_TAKEN,
            flops=2250e12,
            float32=75e12,
            bandwidth=8e12,
            link=900e9,
            network=50e9,
            source=f"{_NVIDIA}dgx-b200, memory {_XLA}",
        ),
        Chip(name="cpu", label="virtual CPU device", platform="cpu"),
    )
}
