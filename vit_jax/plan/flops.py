"""Floating-point operations of the matmuls and convolutions of a compiled program."""

import functools
import math
import re
from collections.abc import Iterator, Mapping

import numpy as np

from vit_jax.models.macs import CUDNN_BACKWARD, CUDNN_FORWARD
from vit_jax.plan.hlo import Computation, HloProgram, Instruction, Shape

# Of a window along one axis, what stands where the text says nothing.
_NEUTRAL = {"size": 1, "stride": 1, "lhs_dilate": 1, "rhs_dilate": 1}
_SLICES = ("slice", "pad")
_WIDE = ("f32", "f64")


def matmul_flops(program: HloProgram) -> int:
    """Operations of one run on one device; a multiplication and its addition are two.

    Counted as XLA counts them: products with zeros that padding or dilation puts in are not there.
    What goes element by element is left out: it is another unit of the chip that does it.
    """
    return sum(flops for _, flops in _matmuls(program))


def slice_flops(program: HloProgram) -> int:
    """What `matmul_flops` counts of operations that only move elements.

    XLA for TPUs writes strided slices, such as those of the soft splits, and their gradients, which
    pad, as products with matrices of zeros and ones.
    """
    return sum(flops for name, flops in _matmuls(program) if name in _SLICES)


def wide_flops(program: HloProgram) -> int:
    """What `matmul_flops` counts of operands in float32 or float64."""
    return sum(
        runs * flops_of(computation, instruction)
        for computation, instruction, runs in program.instructions()
        if instruction.operands
        and computation.instructions[instruction.operands[0]].shapes[0].dtype in _WIDE
    )


def _matmuls(program: HloProgram) -> Iterator[tuple[str, int]]:
    """(the operation of JAX that each was made from, operations in all its runs)."""
    for computation, instruction, runs in program.instructions():
        flops = flops_of(computation, instruction)
        if flops:
            origin = re.search(r'op_name="[^"]*?(\w*)"', instruction.attributes)
            yield origin[1] if origin else "", runs * flops


def flops_of(computation: Computation, instruction: Instruction) -> int:
    """What `matmul_flops` counts of one instruction, run once."""
    count = _COUNTS.get(instruction.opcode)
    return count(computation, instruction) if count else 0


def _dot(computation: Computation, dot: Instruction) -> int:
    left = computation.instructions[dot.operands[0]].shapes[0]
    axes = (dot.attribute("lhs_contracting_dims") or "").split(",")
    return 2 * dot.shapes[0].size * math.prod(left.dims[int(axis)] for axis in axes if axis)


def _convolution(computation: Computation, convolution: Instruction) -> int:
    left, right = (computation.instructions[name].shapes[0] for name in convolution.operands[:2])
    return _convolution_of(convolution, left, right, convolution.shapes[0])


def _library_convolution(computation: Computation, call: Instruction) -> int:
    """Its labels and window are always those of the forward convolution."""
    first, second = (computation.instructions[name].shapes[0] for name in call.operands[:2])
    result = call.shapes[0]
    if "BackwardInput" in call.target:
        return _convolution_of(call, result, second, first)
    if "BackwardFilter" in call.target:
        return _convolution_of(call, first, result, second)
    return _convolution_of(call, first, second, result)


def _convolution_of(convolution: Instruction, left: Shape, right: Shape, result: Shape) -> int:
    """Of the shapes of images, kernel and output."""
    label = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.attributes)
    assert label is not None, convolution.attributes
    images, kernel, out = (
        dict(zip(labels, shape.dims, strict=True))
        for labels, shape in zip(label.groups(), (left, right, result), strict=True)
    )
    groups = int(convolution.attribute("batch_group_count") or 1)
    per_position = kernel["i"] * kernel["o"] * (images["b"] // groups)
    windows = _windows(convolution.attribute("window") or "", len(left.dims) - 2)
    for axis, window in enumerate(windows):
        name = str(axis)
        per_position *= _positions(
            images[name],
            out[name],
            *(window[key] for key in ("size", "stride", "pad", "lhs_dilate", "rhs_dilate")),
        )
    return 2 * per_position


def _custom_call(computation: Computation, call: Instruction) -> int:
    """Of cuBLAS's matmuls and of cuDNN's attention and convolutions; of other calls 0."""
    left = computation.instructions[call.operands[0]].shapes[0] if call.operands else None
    if left is None or not call.is_library_call:
        return 0
    if "fmha" in call.target:
        _, keys, _, _ = computation.instructions[call.operands[1]].shapes[0].dims  # (B, N, H, D)
        products = CUDNN_BACKWARD if call.target.endswith("Backward") else CUDNN_FORWARD
        return 2 * products * left.size * keys
    if "conv" in call.target:
        return _library_convolution(computation, call)
    axes = re.search(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]', call.attributes)
    if axes is None:
        return 0
    contracted = [int(axis.strip('"')) for axis in axes[1].split(",")]
    return 2 * call.shapes[0].size * math.prod(left.dims[axis] for axis in contracted)


def _windows(text: str, axes: int) -> list[Mapping[str, int]]:
    """The window along each axis; `pad` is that before the first element."""
    given = dict(part.split("=") for part in text.split())
    windows = []
    for axis in range(axes):
        window = {
            key: int(given[key].split("x")[axis]) if key in given else neutral
            for key, neutral in _NEUTRAL.items()
        }
        pad = given["pad"].split("x")[axis].split("_")[0] if "pad" in given else 0
        windows.append({**window, "pad": int(pad)})
    return windows


@functools.cache
def _positions(
    size: int, out: int, window: int, stride: int, pad: int, dilation: int, spread: int
) -> int:
    """Pairs of an output and an element of the window that meet an input and not a zero.

    Args:
      size, out: elements of input and output along the axis.
      window, stride, pad: elements of the window, its steps, and zeros before the first input.
      dilation: inputs are this far apart, with zeros between.
      spread: elements of the window are this far apart.
    """
    at = np.arange(out)[:, None] * stride + np.arange(window)[None, :] * spread - pad
    return int(((at >= 0) & (at % dilation == 0) & (at // dilation < size)).sum())


_COUNTS = {"dot": _dot, "convolution": _convolution, "custom-call": _custom_call}
