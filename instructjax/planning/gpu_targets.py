"""GPUs as XLA's compiler is told of them where there is none to ask."""

from __future__ import annotations

from typing import Any

from instructjax.planning.chips import CHIPS

# From NVIDIA's data sheets and tuning guides (CUDA C++ Programming Guide, table of compute
# capabilities), as XLA has them in xla/backends/gpu/target_config/specs.
_ALIKE: dict[str, Any] = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "threads_per_core_limit": 2048,
    "shared_memory_per_block": 49152,
    "registers_per_core_limit": 65536,
    "registers_per_block_limit": 65536,
    "block_dim_limit_x": (1 << 31) - 1,
    "block_dim_limit_y": 65535,
    "block_dim_limit_z": 65535,
    "thread_dim_limit_x": 1024,
    "thread_dim_limit_y": 1024,
    "thread_dim_limit_z": 64,
    "device_address_bits": 64,
    "device_vendor": "NVIDIA Corporation",
}
_GPUS: dict[str, dict[str, Any]] = {
    "a100": {
        "name": "NVIDIA A100-SXM4-80GB",
        "core_count": 108,
        "fpus_per_core": 64,
        "clock_rate_ghz": 1.41,
        "shared_memory_per_core": 167936,
        "shared_memory_per_block_optin": 166912,
        "l2_cache_size": 40 << 20,
        "memory_bandwidth": 2039040000000,
    },
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "core_count": 132,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.98,
        "shared_memory_per_core": 233472,
        "shared_memory_per_block_optin": 232448,
        "l2_cache_size": 50 << 20,
        "memory_bandwidth": 3352320000000,
    },
    "b200": {
        "name": "NVIDIA B200",
        "core_count": 148,
        "fpus_per_core": 128,
        "clock_rate_ghz": 1.965,
        "shared_memory_per_core": 233472,
        "shared_memory_per_block_optin": 232448,
        "l2_cache_size": 132644864,
        "memory_bandwidth": 7672320000000,
    },
}
_CAPABILITIES = {"a100": "major: 8", "h100": "major: 9", "b200": "major: 10"}
# From 9 on, instructions of that generation alone are used: sm_90a.
_ACCELERATED = " feature_extension: ACCELERATED_FEATURES"
_CUDA = dict.fromkeys(
    ("runtime_version", "driver_version", "compile_time_toolkit_version"), "12.9.0"
)


def describe_gpu(name: str) -> str:
    """The text of the `GpuTargetConfigProto` of a chip, by its name in `chips.CHIPS`.

    >>> "core_count: 132" in describe_gpu("h100")
    True
    """
    gpu = _GPUS[name]
    fields = {**_ALIKE, **gpu, **_CUDA, "dnn_version": "9.10.0"}
    fields["device_memory_size"] = int(CHIPS[name].memory)
    lines = [
        f'{key}: "{value}"' if isinstance(value, str) else f"{key}: {value}"
        for key, value in fields.items()
    ]
    capability = _CAPABILITIES[name] + ("" if name == "a100" else _ACCELERATED)
    return "\n".join(
        [
            "gpu_device_info {",
            *lines,
            f"cuda_compute_capability {{ {capability} }}",
            "}",
            'platform_name: "CUDA"',
            "dnn_version_info { major: 9 minor: 10 }",
            f'device_description_str: "{gpu["name"]}"',
        ]
    )
