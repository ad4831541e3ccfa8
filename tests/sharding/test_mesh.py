"""Meshes from words, and what is refused."""

from __future__ import annotations

import jax
import pytest
from jax.sharding import AxisType

from instructjax.errors import UsageError
from instructjax.sharding import choose_mesh, make_mesh, parse_mesh


def test_sizes_are_in_the_order_of_the_axes():
    assert list(parse_mesh(" tensor=2, data=4 ").items()) == [("data", 4), ("tensor", 2)]


def test_a_mesh_has_all_devices_and_automatic_axes():
    mesh = make_mesh("data=2,fsdp=-1,tensor=2")
    assert dict(mesh.shape) == {"data": 2, "fsdp": 2, "tensor": 2}
    assert set(mesh.axis_types) == {AxisType.Auto}
    assert {d.id for d in mesh.devices.flat} == {d.id for d in jax.devices()}
    some = make_mesh({"fsdp": 2}, jax.devices()[:2])
    assert [d.id for d in some.devices.flat] == [0, 1]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'' is no axis"),
        ("rows=8", "'rows' is no axis"),
        ("data=8,data=1", "names data twice"),
        ("data=0", "size of data is '0'"),
        ("data=-2", "size of data is '-2'"),
        ("data=two", "size of data is 'two'"),
        ("data", "size of data is ''"),
        ("data=-1,fsdp=-1", "only one axis"),
        ("data=3", "has 3 places, but there are 8 devices"),
        ("data=4,tensor=4", "such as data=2,tensor=4"),
        ("fsdp=-1,tensor=3", "fsdp=-1,tensor=3 has a multiple of 3 places, .* fsdp=4,tensor=2"),
        ("data=16,fsdp=-1", "has a multiple of 16 places, .* such as data=8,fsdp=1"),
    ],
)
def test_what_does_not_fit_is_refused_with_numbers_that_would(text, says):
    with pytest.raises(UsageError, match=says):
        make_mesh(text)


def test_sixty_four_bits_are_refused():
    jax.config.update("jax_enable_x64", True)
    try:
        with pytest.raises(UsageError, match="JAX_ENABLE_X64 is set, .*; unset it"):
            choose_mesh("data=-1")
    finally:
        jax.config.update("jax_enable_x64", False)
