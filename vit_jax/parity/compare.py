"""Compares a JAX model with a PyTorch one: values, gradients, training."""

import contextlib
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from vit_jax.models.base import VisionModel
from vit_jax.parity.forward import TIMES, limit_of
from vit_jax.parity.golden import read_golden
from vit_jax.parity.modes import by_path, without_dropout
from vit_jax.parity.optimizer_faults import settle_harmless
from vit_jax.parity.ported import PortedModel
from vit_jax.parity.result import Diagnosis, Report, Row
from vit_jax.parity.run import KINK, Comparison, in_order
from vit_jax.parity.sides import (
    FunctionSide,
    JaxFunction,
    ModelSide,
    Side,
    as_model_images,
)
from vit_jax.parity.torch_trace import Losses, Names, trace_torch, with_linear_layout
from vit_jax.parity.values import OptimizerSpec, Reference
from vit_jax.parity.wide_run import compare_wide
from vit_jax.weights.dialects import dialect_of
from vit_jax.weights.state_dict import state_dict

_DEFAULT = ("float64", "float32")
_PRECISIONS = (*_DEFAULT, "bfloat16", "float16")
_MODES = ("eval", "train")


def compare(
    model: nnx.Module | JaxFunction,
    reference: Any,
    inputs: Any = None,
    *,
    images: np.ndarray | None = None,
    loss: Losses | None = None,
    labels: Sequence[int] | np.ndarray | None = None,
    names: Names | None = None,
    grad: bool = True,
    optimizer: OptimizerSpec | None = None,
    transformation: optax.GradientTransformation | None = None,
    precisions: Sequence[str] = _DEFAULT,
    diagnose: bool = True,
    mode: str = "eval",
) -> Report:
    """Compares stage by stage: weights, values, gradients, and steps of training.

    The model is taken as it stands: its weights are not loaded here, and one in train mode drops
    what it drops. It is copied to float64, and to float32, and not changed. Nothing of JAX's
    configuration is changed either: matmuls run at the highest precision.

    In float64 casts to narrower types inside of either side are left out, so that nothing is
    rounded there; notes say where they stand.

    Args:
      model: an NNX module whose arrays are named by the rule of `vit_jax.state_dict`, what
        `from_linen` or `from_equinox` gives, or a `JaxFunction`.
      reference: a `torch.nn.Module`, which is copied and run in eval mode, see `mode`; the path of
        a golden file; or a `Reference`.
      inputs: images (B, H, W, C), floating point, for a torch module; what is not of rank 4 is
        given to both as it is, and so are whole numbers, such as ids of tokens (B, N). A tuple of
        arrays, a mapping of keywords, or a tuple that ends with one: several inputs, by the same
        rule, booleans and what is no array among them; `Untouched(array)` of rank 4 is no image.
        Each array of floats has its gradient compared. Default: two normal random images of a
        registered model's size.
      images: another name of `inputs`.
      loss: (ours, theirs), functions of the output that return a scalar: of JAX's and of PyTorch's.
        Masks and further arguments are theirs to bring.
      labels: (B,) classes for the loss; default as the golden files. Where the output is not
        (B, classes) the loss is its mean weighted by random numbers. Of an output of several arrays
        all are compared, by key, field or position; the loss is that of `logits` or
        `last_hidden_state`, else of the first.
      names: for a torch module with names of its own, what turns them into the model's: a function,
        or (regular expression, replacement) pairs. Default: the same names; those of Hugging Face's
        or torchvision's ViT are put in timm's, unless the model has them too.
      grad: compare the gradients of every parameter, of stages and of the images.
      optimizer: compare so many steps of this optimizer; a golden file holds its own, and
        `read_golden(path).optimizer` is the only one that it can be compared with.
      transformation: your own optimizer in the place of PyTorch's, to be compared with it.
      precisions: of the model: "float64", "float32", "bfloat16", "float16". Without "float64" the
        module need not run in it. In the last two both sides are given parameters and inputs
        rounded to that type, and held against PyTorch's float64 run with these; steps of training
        are not compared.
      diagnose: search for the fault where something departs, in float64.
      mode: "eval"; or "train": both sides as they stand in train mode, without dropout, which draws
        other random numbers on each side. Batch normalisation takes the statistics of the batch,
        gradients go through them, and the running statistics are compared after one run and, with
        an optimizer, after the runs of all steps and of the last loss.

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
    if inputs is not None and images is not None:
        raise ValueError("images: another name of inputs, which were given too")
    images = images if inputs is None else inputs
    if mode not in _MODES:
        raise ValueError(f"mode: wanted one of {', '.join(_MODES)}, got {mode!r}")
    is_alone = "float64" not in precisions
    settings: dict[str, Any] = {"train": mode == "train", "float32_alone": is_alone, "loss": loss}
    reference = _as_reference(model, reference, images, labels, names, grad, optimizer, settings)
    if isinstance(model, nnx.Module):
        reference = with_linear_layout(reference, functools.partial(state_dict, model))
    if isinstance(model, PortedModel):
        is_first = model.channels_first
        given = reference.images if is_first else as_model_images(reference, jnp.float32)
        model = model.settled(given, still=reference.is_train)
    rows: list[Row] = []
    notes: list[str] = []
    if reference.is_float32:
        notes.append(
            f"the reference runs in float32 alone ({reference.refusal}): faults below its float32 "
            "error, which is estimated by moving weights and images by their last digit, go unseen"
        )
    if reference.is_train:
        model, dropped = _in_train_mode(model, reference)
        if dropped:
            notes.append(
                "without dropout on both sides, which draw other random numbers: "
                f"{', '.join(dropped[:6])}{', ...' if dropped[6:] else ''}"
            )
    stage, where, diagnosis = None, "", None
    agrees = not is_alone  # in float64
    for precision in sorted(set(precisions), reverse=True):
        judged = reference if precision in _DEFAULT else _in_type(precision, reference)
        with _context(precision):
            run = _compared(model, judged, precision, grad, optimizer, transformation)
            if precision == "float64" or (stage is None and "float64" in precisions):
                settle_harmless(run)
            rows += run.rows
            notes += [note for note in run.notes if note not in notes]
            if precision not in _DEFAULT:
                notes += _narrow_notes(run, optimizer)
            if stage is None and run.first is not None:
                stage, where = run.place()
            is_wide = precision == "float64"
            agrees = agrees and not (is_wide and run.first is not None)
            if run.first is not None and diagnose and is_wide and diagnosis is None:
                diagnosis, stage, where = _explained(run)
    if is_alone and stage is not None and diagnose:
        # Faults are looked for in float64 whatever the rows are of.
        with _context("float64"):
            run = _compared(model, reference, "float64", grad, optimizer, transformation)
            notes += [note for note in run.notes if note not in notes]
            if run.first is not None:
                diagnosis, stage, where = _explained(run)
            agrees = run.first is None
    first = next((row for row in in_order(rows) if row.verdict != "noise"), None)
    apart = dict.fromkeys(row.precision for row in rows if row.verdict != "noise")
    if agrees and apart and not {*apart} & {*_DEFAULT}:
        notes.append(
            f"float64 agrees: in {' and '.join(apart)} alone the sides differ, in what each of "
            "them rounds, or keeps in float32"
        )
    title = model.name if isinstance(model, JaxFunction | PortedModel) else type(model).__name__
    return Report(title, reference.name, tuple(rows), first, stage, where, diagnosis, tuple(notes))


def _in_type(precision: str, reference: Reference) -> Reference:
    """The reference in a narrow type.

    Raises:
      ValueError: it cannot be run, or not in that type.
    """
    if reference.rounded is None:
        raise ValueError(
            f"precisions: {precision} needs the PyTorch module itself: this reference holds "
            f"{' and '.join(_DEFAULT)} alone"
        )
    return reference.rounded(precision)


def _narrow_notes(run: Comparison, optimizer: OptimizerSpec | None) -> list[str]:
    """What a narrow type does not show."""
    precision, answer = run.precision, run.forward.expected[""][0]
    share = limit_of(answer, precision) / max(answer.rms, float(np.finfo(np.float64).tiny))
    notes = [
        f"{precision} shows what exceeds {TIMES:g} times PyTorch's own error in it, "
        f"{share:.1g} of the output's rms, and {TIMES * KINK:.1g} of a gradient's: what is less, "
        "such as another epsilon or GELU, goes unseen, but for float64"
    ]
    if optimizer is not None:
        notes.append(f"steps of training are not compared in {precision}")
    return notes


def _in_train_mode(
    model: nnx.Module | JaxFunction, reference: Reference
) -> tuple[nnx.Module | JaxFunction, list[str]]:
    """The model without its dropout, and the paths of what drops on either side.

    Raises:
      ValueError: a batch normalisation is in train mode on one side alone.
    """
    if isinstance(model, JaxFunction):
        return model, list(reference.dropped)
    model, dropped = without_dropout(model)
    modules = by_path(model)
    for path, is_train in reference.batch_norms.items():
        own = getattr(modules.get(path), "use_running_average", None)
        if own is not None and own == is_train:
            kinds = ("eval", "train")
            raise ValueError(
                f'mode "train" compares both sides as they stand, and {path} is in '
                f"{kinds[not own]} mode in the model and in {kinds[is_train]} mode in the "
                "reference: put both in one mode"
            )
    return model, list(dict.fromkeys((*reference.dropped, *dropped)))


@contextlib.contextmanager
def _context(precision: str) -> Iterator[None]:
    with jax.enable_x64(precision == "float64"), jax.default_matmul_precision("highest"):
        yield


def _compared(
    model: nnx.Module | JaxFunction, reference: Reference, precision: str, *settings: Any
) -> Comparison:
    dtype = jnp.dtype(precision)
    side: Side = (
        FunctionSide(model, dtype, reference.outputs)
        if isinstance(model, JaxFunction)
        else ModelSide(model, dtype, reference.outputs)
    )

    def make(reference: Reference) -> Comparison:
        return Comparison(side, reference, precision, *settings)

    if precision == "float64":
        return compare_wide(make, reference)
    run = make(reference)
    run.compare()
    return run


def _explained(run: Comparison) -> tuple[Diagnosis | None, str, str]:
    """Why a comparison in float64 departs, in which module and where in it."""
    from vit_jax.parity.diagnose import diagnose  # a tenth of the package's import

    stage, where = run.place()
    found = diagnose(run)
    if found is None:
        return None, stage, where
    return found[0], stage if found[1] is None else found[1], found[2] or where


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


def _has_its_names(model: nnx.Module | JaxFunction, module: Any) -> bool:
    """Whether most arrays of a PyTorch module in another dialect have their own names in the model.

    Then they are not put in timm's, which a port of Hugging Face's model need not have.
    """
    theirs = module.state_dict() if hasattr(module, "state_dict") else {}
    if dialect_of(theirs) is None:
        return False
    own = model.params if isinstance(model, JaxFunction) else state_dict(model)
    return 2 * len(theirs.keys() & own.keys()) > len(theirs)


def _as_reference(
    model: nnx.Module | JaxFunction,
    reference: Any,
    images,
    labels,
    names,
    grad,
    optimizer,
    settings,
) -> Reference:
    if isinstance(reference, str | os.PathLike):
        reference = read_golden(Path(reference))
    if isinstance(reference, Reference):
        if any(given is not None for given in (images, labels, names, settings["loss"])):
            raise ValueError(
                "inputs, labels, names and losses belong to a reference that is run: this one "
                "holds its own"
            )
        if settings["train"] != reference.is_train:
            kind = "train" if reference.is_train else "eval"
            raise ValueError(f"mode: the reference was run in {kind} mode")
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
        reference,
        images,
        labels=labels,
        names=() if names is None and _has_its_names(model, reference) else names,
        grad=grad,
        optimizer=optimizer,
        **settings,
    )
