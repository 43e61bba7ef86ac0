"""What is read out of a program's text: runs, operations, memory traffic, exchanges."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from tests.plan.programs import GPU, LOOP, SHARDED
from vit_jax.models.macs import count_macs
from vit_jax.models.registry import abstract_model
from vit_jax.plan.collectives import Collective, collectives, totals
from vit_jax.plan.cycles import estimated_cycles
from vit_jax.plan.flops import matmul_flops, slice_flops, wide_flops
from vit_jax.plan.hlo import HloProgram, shapes
from vit_jax.plan.kernels import kernels, library_calls
from vit_jax.plan.traffic import hbm_bytes


def test_a_shape_is_read_with_its_memory():
    first, second = shapes("(bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, pred[7]{0})")
    assert (first.bytes, first.memory) == (30, 1)
    assert (second.bytes, second.memory) == (7, 0)
    assert shapes("s4[3]")[0].bytes == 2
    assert shapes("token[]")[0].bytes == 0
    assert shapes("f32[]")[0].bytes == 4


def test_a_loop_runs_as_often_as_its_condition_says():
    program = HloProgram(LOOP)
    assert program.runs["body"] == program.runs["fused"] == 4
    assert program.runs["main"] == 1
    assert program.runs["sum"] == 0  # of a reduction
    assert program.unknown_loops == []


def test_xlas_own_trip_count_goes_first():
    stated = LOOP.replace(
        "body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"6"}}\n'
    )
    assert HloProgram(stated).runs["body"] == 6


def test_a_loop_of_unknown_length_is_named():
    program = HloProgram(LOOP.replace("direction=LT", "direction=NE"))
    assert program.unknown_loops == ["while"]
    assert program.runs["body"] == 1


def test_matmuls_in_a_loop_count_each_time():
    assert matmul_flops(HloProgram(LOOP)) == 4 * 2 * 8 * 16 * 32


def test_slices_that_are_matmuls_are_told_apart():
    text = """\
ENTRY %main (x: f32[8,58,64], s: f32[58,28,1]) -> f32[8,28,64] {
  %x = f32[8,58,64]{2,1,0} parameter(0)
  %s = f32[58,28,1]{2,1,0} parameter(1)
  ROOT %taken = f32[8,28,64]{2,1,0} convolution(%x, %s), window={size=1}, \
dim_labels=bf0_io0->bf0, metadata={op_name="jit(f)/jvp()/OPERATION" stack_frame_id=7}
}
"""
    for operation, slices in (("slice", 1), ("pad", 1), ("dot_general", 0)):
        program = HloProgram(text.replace("OPERATION", operation))
        assert matmul_flops(program) == 2 * 8 * 58 * 28 * 64
        assert slice_flops(program) == slices * 2 * 8 * 58 * 28 * 64


def test_memory_traffic_leaves_out_what_stays_on_the_chip():
    # Of the fusion x (256 bytes) and y (1,024), not w; the exchange reads and writes its arrays.
    of_loop = 4 * (8 * 16 * 2 + 8 * 32 * 4 + 2 * 4)
    scalars = 4 * (4 + 4 + 1)  # i < n: reads two, writes one
    assert hbm_bytes(HloProgram(LOOP)) == of_loop + scalars + 2 * (400 + 84)


def test_a_slice_of_an_array_moves_the_slice():
    text = """\
ENTRY %main (w: f32[12,8], u: f32[1,8], i: s32[]) -> f32[12,8] {
  %w = f32[12,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[]{:S(1)} parameter(2)
  %one = f32[1,8]{1,0} dynamic-slice(%w, %i, %i), dynamic_slice_sizes={1,8}
  ROOT %new = f32[12,8]{1,0} dynamic-update-slice(%w, %u, %i, %i)
}
"""
    assert hbm_bytes(HloProgram(text)) == 4 * 32
    fused = """\
%inside (p.0: f32[12,8], p.1: f32[1,8], p.2: s32[]) -> f32[12,8] {
  %p.0 = f32[12,8]{1,0} parameter(0)
  %p.1 = f32[1,8]{1,0} parameter(1)
  %p.2 = s32[]{:S(1)} parameter(2)
  %negated = f32[1,8]{1,0} negate(%p.1)
  ROOT %new = f32[12,8]{1,0} dynamic-update-slice(%p.0, %negated, %p.2, %p.2)
}

ENTRY %main (w: f32[12,8], u: f32[1,8], i: s32[]) -> f32[12,8] {
  %w = f32[12,8]{1,0} parameter(0)
  %u = f32[1,8]{1,0} parameter(1)
  %i = s32[]{:S(1)} parameter(2)
  ROOT %fusion = f32[12,8]{1,0} fusion(%w, %u, %i), kind=kLoop, calls=%inside
}
"""
    assert hbm_bytes(HloProgram(fused)) == 2 * 32


_HEADS = 2 * 6 * 3 * 8 * 2  # bytes of (batch, tokens, heads, head_dim) in bfloat16


def test_what_libraries_compute_on_a_gpu_is_counted():
    program = HloProgram(GPU)
    wide = 2 * 4 * 16 * 8
    attention = (2 + 5) * 2 * (2 * 3 * 6 * 6 * 8)
    convolutions = 3 * 2 * (2 * 4 * 4 * 4) * (2 * 2 * 3)
    assert wide_flops(program) == wide
    assert matmul_flops(program) == 2 * 10 * 16 * 32 + wide + attention + convolutions


def test_what_libraries_read_and_write_is_counted_without_their_workspace():
    matmuls = 2 * (10 * 16 + 16 * 32 + 32 + 10 * 32) + 4 * (4 * 16 + 16 * 8 + 4 * 8)
    statistics = 4 * 2 * 3 * 6  # of the softmax
    attention = 4 * _HEADS + statistics + (5 + 3) * _HEADS + statistics
    convolutions = 3 * 2 * (2 * 8 * 8 * 3 + 4 * 2 * 2 * 3 + 2 * 4 * 4 * 4)
    others = (2 + 2) * 4 * 4 * 8  # the fusion and the exchange
    assert hbm_bytes(HloProgram(GPU)) == matmuls + attention + convolutions + others


def test_kernels_are_counted_and_libraries_named():
    program = HloProgram(GPU)
    assert kernels(program) == 7 + 2  # of libraries; the fusion and the exchange
    assert library_calls(program) == {
        "__cublas$lt$matmul": 2,
        "__cudnn$convBackwardFilter": 1,
        "__cudnn$convBackwardInput": 1,
        "__cudnn$convForward": 1,
        "__cudnn$fmhaSoftmax": 1,
        "__cudnn$fmhaSoftmaxBackward": 1,
    }
    assert kernels(HloProgram(LOOP)) == 4 * (1 + 1 + 1 + 1) + 1


def test_cycles_of_a_loop_count_in_every_turn():
    cycles = 'backend_config={"estimated_cycles":"%s"}'
    text = LOOP.replace("calls=%fused\n", f"calls=%fused, {cycles % 100}\n")
    copied = "  %x.1 = bf16[8,16]{0,1} copy(%x), " + cycles % 7
    text = text.replace("  %w = bf16[16,32]", f"{copied}\n  %w = bf16[16,32]")
    assert estimated_cycles(HloProgram(text)) == (4 * 107, 4 * 7)


def test_exchanges_are_counted_by_kind_and_by_run():
    found = totals(collectives(HloProgram(LOOP), 4))
    (row,) = found
    assert (row.kind, row.count, row.bytes) == ("all-reduce", 5, 4 * 4 + 4 * (100 + 21))
    assert row.sent_bytes == pytest.approx(2 * 3 / 4 * row.bytes)


def test_a_gather_in_many_fusions_is_one_and_a_fused_scatter_is_one():
    rows = {row.kind: row for row in totals(collectives(HloProgram(SHARDED), 4))}
    assert set(rows) == {"all-gather", "reduce-scatter", "collective-permute"}
    whole = 32 * 8 * 4
    assert (rows["all-gather"].count, rows["all-gather"].bytes) == (1, whole)
    assert (rows["reduce-scatter"].count, rows["reduce-scatter"].bytes) == (1, whole)
    assert rows["reduce-scatter"].sent_bytes == whole / 2
    assert rows["collective-permute"].sent_bytes == whole / 2


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3}}", 4),
        ("{{0,2},{1,3}}", 2),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(1)2}", 2),
        ("{}", 16),
    ],
)
def test_the_size_of_a_group_is_read_in_all_forms(groups, size):
    text = LOOP.replace("replica_groups={{0,1,2,3}}", f"replica_groups={groups}")
    found = collectives(HloProgram(text), 16)
    assert {one.group for one in found if one.count == 1} == {size}


def test_an_exchange_of_one_is_none():
    text = LOOP.replace("{{0,1,2,3}}", "{{0},{1},{2},{3}}")
    assert sum(row.count for row in totals(collectives(HloProgram(text), 4))) == 4


@pytest.mark.parametrize(("kind", "sent"), [("all-reduce", 150), ("all-gather", 75)])
def test_a_ring_sends_the_least(kind, sent):
    assert Collective(kind, 1, 100, 4).sent_bytes == sent


@pytest.mark.parametrize(
    ("attributes", "images", "kernel", "out", "expected"),
    [
        # A patch embedding: 4x4 windows of 2x2 images.
        (
            "window={size=2x2 stride=2x2}, dim_labels=b01f_01io->b01f",
            (3, 8, 8, 5),
            (2, 2, 5, 7),
            (3, 4, 4, 7),
            2 * 3 * 16 * 7 * 4 * 5,
        ),
        # Padding is not computed with: of 3 windows of 3 over 3 pixels, 7 of 9 meet a pixel.
        (
            "window={size=3 pad=1_1}, dim_labels=b0f_0io->b0f",
            (2, 3, 5),
            (3, 5, 7),
            (2, 3, 7),
            2 * 2 * 7 * 5 * 7,
        ),
        # libtpu's form of a batched matmul, the batch (4) being an axis of the window.
        (
            "window={size=4 stride=3 lhs_dilate=4}, dim_labels=0bf_0io->0bf",
            (4, 10, 6),
            (4, 6, 8),
            (4, 10, 8),
            2 * 4 * 10 * 6 * 8,
        ),
    ],
)
def test_convolutions_count_what_is_not_zero(attributes, images, kernel, out, expected):
    text = f"""\
ENTRY %main (x: f32{list(images)}, w: f32{list(kernel)}) -> f32{list(out)} {{
  %x = f32[{",".join(map(str, images))}]{{0}} parameter(0)
  %w = f32[{",".join(map(str, kernel))}]{{0}} parameter(1)
  ROOT %y = f32[{",".join(map(str, out))}]{{0}} convolution(%x, %w), {attributes}
}}
"""
    assert matmul_flops(HloProgram(text)) == expected


def test_a_compiled_model_computes_what_is_counted_by_shapes():
    """Also in a scan over its layers, the body of which XLA's own count takes once."""
    model = abstract_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=3,
        embed_dim=24,
        num_classes=7,
        scan_layers=True,
    )
    model.eval()
    graph, state = nnx.split(model)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    compiled = jax.jit(lambda s, x: nnx.merge(graph, s)(x)).lower(state, images).compile()
    program = HloProgram(compiled.as_text())
    assert max(program.runs.values()) >= 3
    assert matmul_flops(program) == 2 * count_macs(model, images)
