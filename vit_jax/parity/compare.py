"""Compares a JAX model with a PyTorch one: values, gradients, training."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vit_jax.models.base import VisionModel
from vit_jax.parity.diagnose import diagnose as find_fault
from vit_jax.parity.golden import read_golden
from vit_jax.parity.result import Report, Row
from vit_jax.parity.run import Comparison, in_order
from vit_jax.parity.sides import (
    FunctionSide,
    JaxFunction,
    ModelSide,
    Side,
)
from vit_jax.parity.torch_trace import Names, trace_torch
from vit_jax.parity.values import OptimizerSpec, Reference

_PRECISIONS = ("float64", "float32")


def compare(
    model: nnx.Module | JaxFunction,
    reference: Any,
    images: np.ndarray | None = None,
    *,
    labels: Sequence[int] | np.ndarray | None = None,
    names: Names | None = None,
    grad: bool = True,
    optimizer: OptimizerSpec | None = None,
    transformation: optax.GradientTransformation | None = None,
    precisions: Sequence[str] = _PRECISIONS,
    diagnose: bool = True,
) -> Report:
    """Compares stage by stage: weights, values, gradients, and steps of training.

    The model is taken as it stands: its weights are not loaded here, and one in train mode drops
    what it drops. It is copied to float64, and to float32, and not changed. Nothing of JAX's
    configuration is changed either: matmuls run at the highest precision.

    Args:
      model: an NNX module whose arrays are named by the rule of `vit_jax.state_dict`, or a
        `JaxFunction`.
      reference: a `torch.nn.Module`, which is copied and run in eval mode; the path of a golden
        file; or a `Reference`.
      images: (B, H, W, C), floating point, for a torch module; what is not of rank 4 is given to
        both as it is, and so are whole numbers, such as ids of tokens (B, N). Default: two normal
        random images of a registered model's size.
      labels: (B,) classes for the loss; default as the golden files. Where the output is not
        (B, classes) the loss is its mean weighted by random numbers. Of an output of several arrays
        all are compared, by key, field or position; the loss is that of `logits` or
        `last_hidden_state`, else of the first.
      names: for a torch module with names of its own, what turns them into the model's: a function,
        or (regular expression, replacement) pairs. Default: the same names, or Hugging Face's or
        torchvision's.
      grad: compare the gradients of every parameter, of stages and of the images.
      optimizer: compare so many steps of this optimizer; a golden file holds its own, and
        `read_golden(path).optimizer` is the only one that it can be compared with.
      transformation: your own optimizer in the place of PyTorch's, to be compared with it.
      precisions: of the model: "float64", "float32".
      diagnose: search for the fault where something departs in float64.

    Returns:
      The report.

    Raises:
      ValueError: an argument that does not fit.
    """
    wrong = [p for p in precisions if p not in _PRECISIONS] or ([] if precisions else [()])
    if wrong:
        raise ValueError(f"precisions: wanted some of {', '.join(_PRECISIONS)}, got {precisions!r}")
    if not isinstance(model, nnx.Module | JaxFunction):
        raise ValueError(
            "model: wanted a flax.nnx.Module or a vit_jax.parity.JaxFunction, got "
            f"{type(model).__name__}"
        )
    reference = _as_reference(model, reference, images, labels, names, grad, optimizer)
    rows: list[Row] = []
    notes: list[str] = []
    stage, where, diagnosis = None, "", None
    for precision in sorted(set(precisions), reverse=True):
        is_wide = precision == "float64"
        with jax.enable_x64(is_wide), jax.default_matmul_precision("highest"):
            dtype = jnp.dtype(precision)
            side: Side = (
                FunctionSide(model, dtype, reference.outputs)
                if isinstance(model, JaxFunction)
                else ModelSide(model, dtype, reference.outputs)
            )
            run = Comparison(side, reference, precision, grad, optimizer, transformation)
            run.compare()
            rows += run.rows
            notes += [note for note in run.notes if note not in notes]
            if stage is None and run.first is not None:
                stage, where = run.place()
                found = find_fault(run) if is_wide and diagnose else None
                if found is not None:
                    diagnosis, stage, where = found[0], found[1] or stage, found[2] or where
    first = next((row for row in in_order(rows) if row.verdict != "noise"), None)
    title = model.name if isinstance(model, JaxFunction) else type(model).__name__
    return Report(title, reference.name, tuple(rows), first, stage, where, diagnosis, tuple(notes))


def assert_parity(
    model: nnx.Module | JaxFunction, reference: Any, *args: Any, **kwargs: Any
) -> Report:
    """`compare` for tests: the same arguments.

    Returns:
      The report, where all of it is noise.

    Raises:
      AssertionError: something departs or drifts; it says what, where and, if found, why.
    """
    report = compare(model, reference, *args, **kwargs)
    if report.first is not None:
        row = report.first
        parts = [
            f"{report.model} is not {report.reference}: first {row.verdict} in {row.section} "
            f"({row.precision}) at {row.name or 'the output'}: {row.max_abs:.2e} where up to "
            f"{row.limit:.2e} is noise",
            f"the fault stands in {report.stage or 'the model itself'}, {report.where}",
        ]
        if report.diagnosis is not None:
            parts.append(report.diagnosis.text)
        raise AssertionError("\n".join(parts))
    return report


def _as_reference(
    model: nnx.Module | JaxFunction, reference: Any, images, labels, names, grad, optimizer
) -> Reference:
    if isinstance(reference, str | os.PathLike):
        reference = read_golden(Path(reference))
    if isinstance(reference, Reference):
        if images is not None or labels is not None or names is not None:
            raise ValueError(
                "images, labels and names belong to a reference that is run: this one holds its own"
            )
        if optimizer is not None and optimizer != reference.optimizer:
            raise ValueError(
                f"the reference was trained with {reference.optimizer}, not with {optimizer}"
            )
        return reference
    if images is None:
        if not isinstance(model, VisionModel):
            raise ValueError("images: wanted an array to give to both, got None")
        shape = (max(2, model.batch_slots), *model.img_size, model.in_chans)
        images = np.random.default_rng(0).standard_normal(shape)
    return trace_torch(
        reference, images, labels=labels, names=names, grad=grad, optimizer=optimizer
    )
