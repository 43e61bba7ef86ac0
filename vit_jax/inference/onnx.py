"""Programs as ONNX files, by jax2onnx; run by onnxruntime."""

import importlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

PACKAGES = ("jax2onnx", "onnxruntime")


def import_onnx() -> list[Any]:
    """The modules `PACKAGES`, or raises ValueError where they are not installed."""
    try:
        return [importlib.import_module(name) for name in PACKAGES]
    except ImportError as error:
        raise ValueError(
            f"format onnx needs {' and '.join(PACKAGES)} ({error}): pip install 'vit-jax[onnx]'"
        ) from None


def write_onnx(
    function: Callable[[jax.Array], jax.Array], images: jax.ShapeDtypeStruct, path: Path
) -> None:
    """Writes a function of images, whose first axis is free in the file, as one file."""
    converter, _ = import_onnx()
    serializer = logging.getLogger("onnx_ir.serde")
    level = serializer.level
    serializer.setLevel(logging.ERROR)  # it warns of every shape that was worked out
    try:
        program = converter.to_onnx(
            function,
            [jax.ShapeDtypeStruct(("batch", *images.shape[1:]), images.dtype)],
            model_name="model",
            input_names=("images",),
            output_names=("logits",),
        )
    finally:
        serializer.setLevel(level)
    path.write_bytes(program.SerializeToString())


def read_onnx(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    """The function of a file of `write_onnx`, on the CPU."""
    _, onnxruntime = import_onnx()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": np.asarray(images)})[0]
