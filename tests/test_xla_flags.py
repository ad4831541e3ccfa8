"""Sums that some releases of jaxlib get wrong on CPU are right after `import instructjax`.

And of the pass of XLA that fails: what it fails at is compiled in `planning/test_plan.py`.
"""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from instructjax import xla_flags

# Of jax-ml/jax#39103: a product and two sums.
SUMS = """
import jax, jax.numpy as jnp
x = jnp.arange(32769.0)[:, None] * jnp.array([1.0, 0.0, 0.0])
f = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
print(jax.jit(f)(x)[-1] == 32768.0**2)
"""


def run(code: str, **variables: str) -> str:
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", **variables}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, text=True, capture_output=True, check=True
    )
    return done.stdout.strip() + done.stderr.strip()


def test_sums_are_right() -> None:
    x = jnp.arange(32769.0)[:, None] * jnp.array([1.0, 0.0, 0.0])
    f = jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2))
    assert jax.jit(f)(x)[-1] == 32768.0**2
    assert run("import instructjax" + SUMS) == "True"
    assert run("import jax; import instructjax" + SUMS) == "True"


@pytest.mark.skipif(xla_flags._find_jaxlib() not in xla_flags.AFFECTED, reason="another jaxlib")
def test_coming_too_late_is_told() -> None:
    said = run("import jax.numpy as jnp; jnp.ones(3).sum(); import instructjax")
    assert "may get sums wrong on CPU, and has computed already" in said
    late = "import jax.numpy as jnp; jnp.ones(3).sum(); import instructjax"
    assert run(late, XLA_FLAGS=f"{xla_flags.FLAG}=-reduce") == ""


def test_other_flags_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_flags, "_find_jaxlib", lambda: "0.10.2")
    monkeypatch.setattr(xla_flags.sys, "modules", {})
    for before, after in (
        ("", f"{xla_flags.FLAG}=-reduce"),
        ("--xla_other=1", f"--xla_other=1 {xla_flags.FLAG}=-reduce"),
        (f"{xla_flags.FLAG}=", f"{xla_flags.FLAG}="),
    ):
        monkeypatch.setenv("XLA_FLAGS", before)
        xla_flags.keep_sums_right()
        assert os.environ["XLA_FLAGS"] == after
    for other in ("0.10.1", "0.12.0", None):
        monkeypatch.setattr(xla_flags, "_find_jaxlib", lambda other=other: other)
        monkeypatch.setenv("XLA_FLAGS", "")
        xla_flags.keep_sums_right()
        assert os.environ["XLA_FLAGS"] == ""


def test_a_choice_of_passes_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    skip = f"{xla_flags.SKIP}={xla_flags.PASS}"
    for before, after in (
        ("", skip),
        ("--xla_other=1", f"--xla_other=1 {skip}"),
        (f"{xla_flags.SKIP}=cse", f"{xla_flags.SKIP}=cse"),
        (skip, skip),
    ):
        monkeypatch.setenv("XLA_FLAGS", before)
        xla_flags.skip_failing_pass()
        assert os.environ["XLA_FLAGS"] == after
