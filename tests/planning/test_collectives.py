"""Collectives of programs whose text or making says which there must be."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from instructjax.errors import InstructJaxError
from instructjax.planning.collectives import Collective, find_collectives
from instructjax.planning.hlo import Loop, array_bytes, count_runs, parse_hlo

MESH = {"fsdp": 4, "tensor": 2}


@pytest.fixture(scope="module")
def mesh():
    return jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)


def compile_text(function, mesh, *arrays):
    text = jax.jit(function).lower(*arrays).compile().as_text()
    assert text is not None
    return text


def make_step(mesh, rounds):
    """Gathers over one axis and adds up over the other, `rounds` times."""

    def local(x, rounds):
        def body(i, x):
            whole = lax.all_gather(x, "fsdp", axis=0, tiled=True)  # [8, 16]
            total = lax.psum(jnp.sin(whole), "tensor")  # [8, 16]
            return lax.psum_scatter(total, "fsdp", scatter_dimension=0, tiled=True) * 0.1

        return lax.fori_loop(0, rounds, body, x)

    def step(x, rounds):
        specs = (P("fsdp", "tensor"), P())
        return jax.shard_map(
            local, mesh=mesh, in_specs=specs, out_specs=P("fsdp", "tensor"), check_vma=False
        )(x, rounds)

    sharding = NamedSharding(mesh, P("fsdp", "tensor"))
    x = jax.ShapeDtypeStruct((8, 32), jnp.float32, sharding=sharding)
    if rounds is None:
        return compile_text(step, mesh, x, jax.ShapeDtypeStruct((), jnp.int32))
    return compile_text(lambda x: step(x, rounds), mesh, x)


def by_kind(found):
    return {each.kind: (each.axes, each.group, each.num_bytes, each.count) for each in found}


def test_those_in_a_loop_count_as_often_as_it_runs(mesh):
    found = by_kind(find_collectives(make_step(mesh, 5), MESH))
    size = 8 * 16 * 4
    assert found == {
        "all-gather": (("fsdp",), 4, size, 5.0),
        "all-reduce": (("tensor",), 2, size, 5.0),
        "reduce-scatter": (("fsdp",), 4, size, 5.0),
    }


def test_where_the_bound_is_data_the_caller_says_it(mesh):
    text, asked = make_step(mesh, None), []

    def expect(loop: Loop):
        asked.append(loop)
        return 7.0

    assert {count for *_, count in by_kind(find_collectives(text, MESH, expect)).values()} == {7.0}
    assert [(loop.within, loop.in_layers) for loop in asked] == [(0, 0)]


def test_bytes_sent_on_a_ring():
    def sent(kind):
        return Collective(kind=kind, axes=("fsdp",), group=4, num_bytes=100.0, count=2.0).sent

    # each device passes on everything but its own part; to reduce and give back, twice
    assert sent("all-gather") == sent("reduce-scatter") == sent("all-to-all") == 2 * 75
    assert sent("all-reduce") == 2 * 150
    assert sent("collective-permute") == 200


def test_as_tpus_spell_them():
    """Parts of one gather in several fusions, a reduce-scatter as one, pairs, no trip count."""
    text = (Path(__file__).parents[1] / "fixtures" / "tpu_loop.hlo").read_text()
    found = {each.kind: each for each in find_collectives(text, MESH)}
    gather, scatter = found["all-gather"], found["reduce-scatter"]
    assert (gather.axes, gather.group, gather.count) == (("fsdp",), 4, 32.0)
    assert (gather.num_bytes, gather.where) == (64 * 8 * 2, "forward")
    assert (scatter.axes, scatter.group, scatter.count) == (("fsdp",), 4, 32.0)
    assert (scatter.num_bytes, scatter.where) == (64 * 8 * 4, "backward")
    permute = found["collective-permute"]
    assert (permute.axes, permute.group, permute.num_bytes) == (("tensor",), 2, 16 * 8 * 2)
    assert len(found) == 3


@pytest.mark.parametrize(
    ("start", "num_bytes"),
    [
        ("((f32[2], bf16[3]), (f32[8], bf16[12])) all-gather-start(%x, %y)", 8 * 4 + 12 * 2),
        ("(f32[2], f32[8]) all-gather-start(%x)", 8 * 4),
        ("((f32[8], f32[4]), (f32[2], f32[1])) reduce-scatter-start(%x, %y)", 12 * 4),
        ("(f32[8], f32[4]) all-reduce-start(%x, %y)", 12 * 4),
        ("(f32[8], f32[8], u32[], u32[]) all-to-all-start(%x)", 8 * 4),
    ],
)
def test_several_arrays_at_once_are_added_up(start, num_bytes):
    """As GPUs do: one collective of all that is ready, its operands before its results."""
    text = program_with(f"{start}, replica_groups=[2,4]<=[4,2]T(1,0)")
    (found,) = find_collectives(text, MESH)
    assert (found.axes, found.num_bytes, found.count) == (("fsdp",), num_bytes, 1)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("jit(step)/shard_map/jvp()/while/body/dot_general", "forward"),
        ("jit(step)/shard_map/transpose(jvp())/scatter-add", "backward"),
        ("jit(step)/shard_map/transpose(jvp())/rematted_computation/all_gather", "again"),
        ("jit(step)/shard_map/sum_over_rows/psum_invariant", "backward"),
        ("jit(step)/reduce_sum", "update"),
    ],
)
def test_where_a_program_has_them(name, where):
    """By its own name; one that has none, as TPUs spell what they make of a scatter, by that of
    what it is given, however far before."""
    metadata = f'metadata={{op_name="{name}"}}'
    own = f"f32[8]{{0}} all-reduce(%x), replica_groups=[2,4]<=[4,2]T(1,0), {metadata}"
    (found,) = find_collectives(program_with(own), MESH)
    text = f"""HloModule made

ENTRY %main (x: f32[8]) -> f32[8] {{
  %x = f32[8]{{0}} parameter(0)
  %named = f32[8]{{0}} tanh(%x), {metadata}
  %bare = f32[8]{{0}} copy(%named)
  ROOT %y = f32[8]{{0}} all-reduce(%bare), replica_groups=[2,4]<=[4,2]T(1,0)
}}
"""
    (far,) = find_collectives(text, MESH)
    assert (found.where, far.where) == (where, where)


GATHER = "all-gather(%part), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}"


@pytest.mark.parametrize(
    "caller",
    [
        "call-start(%x), to_apply=%called",
        "async-start(%x), calls=%called",
        "custom-call(%x), called_computations={%other, %called}",
        "conditional(%x), branch_computations={%other, %called}",
    ],
)
def test_whatever_calls_them_they_are_found(caller):
    found = find_collectives(program_with(f"f32[8]{{0}} {caller}"), MESH)
    assert by_kind(found) == {"all-gather": (("fsdp",), 4, 32, 1)}


def test_one_that_nothing_calls_is_an_error():
    with pytest.raises(InstructJaxError, match="all-gather in called"):
        find_collectives(program_with("f32[8]{0} unheard-of(%x), does=%called"), MESH)


@pytest.mark.parametrize(
    ("spelled", "kind", "num_bytes"),
    [
        ("ALL_REDUCE", "all-reduce", 8),
        ("REDUCE_SCATTER", "reduce-scatter", 8),
        ("ALL_GATHER", "all-gather", 32),
    ],
)
def test_what_slices_send_each_other(spelled, kind, num_bytes):
    """Of a gather each sends its part, of the others the whole."""
    text = program_with(send_between("{1:2,3,4}x{0:3}", spelled))
    (found,) = find_collectives(text, {"data": 8, "fsdp": 2}, crossing="data")
    assert (found.kind, found.axes, found.group) == (kind, ("data",), 4)
    assert (found.num_bytes, found.count, found.network) == (num_bytes, 1, True)


def test_slices_that_send_the_unknown_are_an_error():
    with pytest.raises(InstructJaxError, match="TELEPATHY"):
        find_collectives(program_with(send_between("{1,2}x{0:3}", "TELEPATHY")), MESH)


def send_between(target, spelled):
    attributes = f'_xla_megascale_target="{target}",_xla_megascale_transfer_type="{spelled}"'
    return (
        "(f32[2]{0}, u32[], token[]) send(%x, %token), channel_id=2, is_host_transfer=true, "
        f"frontend_attributes={{{attributes}}}"
    )


def program_with(result):
    result_of_called = GATHER if "%called" in result else "tanh(%part)"
    return f"""HloModule made

%other (part: f32[2]) -> f32[2] {{
  ROOT %part = f32[2]{{0}} parameter(0)
}}

%called (part: f32[2]) -> f32[8] {{
  %part = f32[2]{{0}} parameter(0)
  ROOT %whole = f32[8]{{0}} {result_of_called}
}}

ENTRY %main (x: f32[2]) -> f32[8] {{
  %x = f32[2]{{0}} parameter(0)
  ROOT %y = {result}
}}
"""


def test_runs_multiply_through_loops_within_loops():
    def inner(x):
        return lax.fori_loop(0, 3, lambda i, x: jnp.sin(x) + i, x)

    text = (
        jax.jit(lambda x: lax.fori_loop(0, 4, lambda i, x: inner(x), x))
        .lower(jax.ShapeDtypeStruct((256,), jnp.float32))
        .compile()
        .as_text()
    )
    assert text is not None
    computations, entry = parse_hlo(text)
    runs = count_runs(computations, entry)
    sines = [
        runs[name]
        for name, steps in computations.items()
        for step in steps.values()
        if step.kind == "sine"
    ]
    assert sum(sines) == 12


@pytest.mark.parametrize(("first", "rounds"), [(0, 6), (1, 5)])
def test_a_loop_whose_first_round_was_taken_out(first, rounds):
    text = f"""HloModule made

%body (turn: (s32[], f32[2])) -> (s32[], f32[2]) {{
  ROOT %turn = (s32[], f32[2]) parameter(0)
}}

%goes_on (turn: (s32[], f32[2])) -> pred[] {{
  %turn = (s32[], f32[2]) parameter(0)
  %at = s32[] get-tuple-element(%turn), index=0
  %stop = s32[] constant(6)
  ROOT %less = pred[] compare(%at, %stop), direction=LT
}}

ENTRY %main (x: f32[2]) -> (s32[], f32[2]) {{
  %x = f32[2] parameter(0)
  %first = s32[] constant({first})
  %begin = s32[] copy(%first)
  %given = (s32[], f32[2]) tuple(%begin, %x)
  ROOT %loop = (s32[], f32[2]) while(%given), condition=%goes_on, body=%body
}}
"""
    assert count_runs(*parse_hlo(text))["body"] == rounds


def test_bytes_of_shapes():
    assert array_bytes("bf16[4,2,2048]{1,2,0:T(8,128)(2,1)S(1)}") == [4 * 2 * 2048 * 2]
    assert array_bytes("(pred[], s8[3], f64[2]{0})") == [1, 3, 16]
