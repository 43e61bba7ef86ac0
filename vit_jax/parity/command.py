"""`vit-jax parity`: a model beside a PyTorch module, or beside a golden file."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console

from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.parity.compare import compare
from vit_jax.parity.golden import golden_model, read_golden
from vit_jax.parity.render import print_report, to_json, write_html
from vit_jax.parity.result import Report
from vit_jax.parity.sides import JaxFunction
from vit_jax.parity.torch_module import (
    blaming_the_module,
    blaming_the_port,
    make_module,
    make_object,
)
from vit_jax.parity.torch_trace import float_state_dict
from vit_jax.parity.values import OptimizerSpec, Reference
from vit_jax.storage import read_bytes
from vit_jax.weights.dialects import to_own
from vit_jax.weights.formats import Weights
from vit_jax.weights.load import load_into, read_source, stated_fields
from vit_jax.weights.state_dict import MisfitError, load_state_dict

_PRECISIONS = {
    "both": ("float64", "float32"),
    **{name: (name,) for name in ("float64", "float32", "bfloat16", "float16")},
}


@dataclasses.dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
      name: a registered model, or MODULE:CALLABLE of a port of one's own; None: the one that the
        golden file names.
      fields: of its constructor.
      weights: see `load_pretrained`; None: those of the reference.
      reference: a golden file; torch: MODULE:CALLABLE of a module; make_golden: that, and the
        golden file to write. One of the three is given.
      grad: compare gradients; they are also where `steps` or `optimizer` is given.
      steps, optimizer: of training to compare; None: none, or ten steps of AdamW where the other is
        given.
      inputs: MODULE:CALLABLE of what `compare` takes as inputs.
      images: a .npy file of (B, H, W, C), normalised; None: `batch` images, or two, drawn from a
        standard normal with `seed`.
      precision: "both" (float64 and float32), or the name of one.
      html: where to write a page; json: JSON in place of tables; everything: tables of all stages.
      image_shape, classes: of the golden file to write.
    """

    name: str | None = None
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weights: str | None = None
    reference: str | None = None
    torch: str | None = None
    make_golden: tuple[str, str] | None = None
    grad: bool = False
    steps: int | None = None
    optimizer: str | None = None
    images: str | None = None
    inputs: str | None = None
    batch: int | None = None
    seed: int = 0
    precision: str = "both"
    html: str | None = None
    json: bool = False
    everything: bool = False
    image_shape: str | None = None
    classes: int | None = None

    def __post_init__(self):
        making = self.make_golden is not None
        beside = (
            ("weights", "images", "inputs", "grad", "html", "json", "everything")
            if making
            else ("image_shape", "classes")
        )
        wrong = [name for name in beside if getattr(self, name) not in (None, False)]
        if wrong:
            flags = ", ".join(_flag(name) for name in wrong)
            raise ValueError(f"{flags}: {'not' if making else 'only'} with --make-golden")
        for name in ("steps", "batch", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_flag(name)}: wanted a number of at least 1, got {value}")
        given = [name for name in ("inputs", "images", "batch") if getattr(self, name) is not None]
        if self.reference is not None and given:
            raise ValueError(f"{_flag(given[0])}: a golden file brings its own images")
        if len(given) >= 2:
            if given[0] == "inputs":
                raise ValueError(f"{_flag(given[1])}: --inputs brings its own")
            raise ValueError("--batch: the file of --images says how many there are")
        if self.is_own and (self.fields or making):
            raise ValueError(
                f"{'--make-golden' if making else '--field'}: {self.name} is called as it is"
            )

    @property
    def is_own(self) -> bool:
        """Whether the model is a port of the user's own."""
        return self.name is not None and ":" in self.name


def _flag(name: str) -> str:
    return "--all" if name == "everything" else f"--{name.replace('_', '-')}"


def run(request: Request) -> int:
    """Does what is asked and prints it.

    Returns:
      The exit status: 0 where every difference is noise (or the golden file is written), 1 where
      one is not.

    Raises:
      ValueError: what is asked for does not go, or does not fit.
    """
    if request.make_golden is not None:
        _make_golden(request, *request.make_golden)
        return 0
    report = _compare(request)
    if request.html is not None:
        write_html(report, request.html)
    if request.json:
        print(json.dumps(to_json(report), indent=1, allow_nan=False))
    else:
        print_report(report, Console(), everything=request.everything)
        if request.html is not None:
            print(f"wrote {request.html}")
    return 0 if report.ok else 1


def _compare(request: Request) -> Report:
    options: dict[str, Any] = {"precisions": _PRECISIONS[request.precision]}
    if request.is_own:
        return _compare_own(request, options)
    if request.reference is not None:
        golden = read_golden(request.reference)
        name, model = _model_of_golden(request, request.reference, golden)
        options["optimizer"] = _optimizer_of_golden(request, request.reference, golden)
        options["grad"] = request.grad or options["optimizer"] is not None
        report = compare(model, golden, **options)
        return dataclasses.replace(report, model=name, reference=request.reference)
    assert request.torch is not None
    if request.name is None:
        raise ValueError(
            "--torch: wanted the NAME of a registered model beside it, or MODULE:CALLABLE"
        )
    module = make_module(request.torch, request.seed)
    if request.weights is None:
        weights = Weights(to_own(float_state_dict(module))[0])
        model = _model(request.name, request.fields, weights, request.torch)
    else:
        weights = read_source(request.weights, None)
        model = _model(request.name, request.fields, weights, request.weights)
    options["optimizer"] = _optimizer(request)
    options["grad"] = request.grad or options["optimizer"] is not None
    with blaming_the_module(request.torch):
        report = compare(model, module, _images(request, model), **options)
    return dataclasses.replace(report, model=request.name, reference=request.torch)


def _compare_own(request: Request, options: dict[str, Any]) -> Report:
    """A port of the user's own, with the reference's weights, or those of a file."""
    assert request.name is not None
    kinds = (nnx.Module, JaxFunction)
    wanted = "an nnx.Module, what from_linen or from_equinox gives, or a JaxFunction"
    model = make_object(request.name, kinds, wanted)
    reference: Any
    if request.reference is not None:
        reference = read_golden(request.reference)
        weights, source = dict(reference.weights), request.reference
        options["optimizer"] = _optimizer_of_golden(request, request.reference, reference)
    else:
        assert request.torch is not None
        reference = make_module(request.torch, request.seed)
        weights, source = dict(reference.state_dict()), request.torch
        options["optimizer"] = _optimizer(request)
        options["inputs"] = _own_inputs(request, model)
    if request.weights is not None:
        weights, source = dict(read_source(request.weights, None).arrays), request.weights
    if isinstance(model, JaxFunction):
        same = {n: weights[n] for n in model.params if n in weights}
        model = dataclasses.replace(model, params={**model.params, **same})
    elif weights:
        try:
            load_state_dict(model, weights)
        except MisfitError as error:
            some = "; ".join(error.problems[:4]) + ("; ..." if error.problems[4:] else "")
            raise ValueError(f"{source!r} does not fit {request.name!r}: {some}") from error
        model.eval()
    options["grad"] = request.grad or options["optimizer"] is not None
    blamed = contextlib.nullcontext()
    if request.torch is not None:
        blamed = blaming_the_module(request.torch)
    with blaming_the_port(request.name), blamed:
        report = compare(model, reference, **options)
    return dataclasses.replace(
        report, model=request.name, reference=request.reference or request.torch
    )


def _own_inputs(request: Request, model: Any) -> Any:
    if request.inputs is not None:
        kinds = (np.ndarray, jax.Array, tuple, Mapping)
        return make_object(request.inputs, kinds, "an array, a tuple or a mapping of them")
    if request.images is not None:
        return _read_array(request.images)
    if isinstance(model, VisionModel):
        return None
    raise ValueError("--inputs: wanted MODULE:CALLABLE of what both models are given, or --images")


def _model_of_golden(request: Request, path: str, golden: Reference) -> tuple[str, VisionModel]:
    name, fields = golden_model(path)
    if request.name is not None and request.name != name:
        name, fields = request.name, {}
    if name is None:
        raise ValueError(
            f"{path!r} does not say which registered model it is of: give its NAME, and --field "
            "where it differs from that"
        )
    if request.weights is not None:
        weights, source = read_source(request.weights, None), request.weights
    elif golden.weights:
        weights, source = Weights(dict(golden.weights)), path
    else:
        raise ValueError(f"{path!r} holds no weights: give --weights")
    return name, _model(name, {**fields, **request.fields}, weights, source)


def _model(name: str, fields: Mapping[str, Any], weights: Weights, source: str) -> VisionModel:
    """The model in float64 with these weights, in eval mode.

    It has as many classes as they have, and the fields that they state, unless `fields` says
    others.
    """
    wide = {"dtype": jnp.float64, "param_dtype": jnp.float64}
    made = {**stated_fields(weights, name), **wide, **fields}
    model = abstract_model(name, **made)  # every array is loaded: none need be drawn
    report = load_into(model, weights, source)
    for line in (*report.adapted, *report.left):
        print(f"note: {line}", file=sys.stderr)
    model.eval()
    return model


def _optimizer(request: Request) -> OptimizerSpec | None:
    if request.steps is None and request.optimizer is None:
        return None
    spec = OptimizerSpec()
    return dataclasses.replace(
        spec, name=request.optimizer or spec.name, steps=request.steps or spec.steps
    )


def _optimizer_of_golden(request: Request, path: str, golden: Reference) -> OptimizerSpec | None:
    """The steps that the file holds, where they are asked for."""
    asked = {"--steps": request.steps, "--optimizer": request.optimizer}
    if not any(asked.values()):
        return None
    if golden.optimizer is None:
        raise ValueError(f"{path!r} holds no optimizer steps to compare")
    held = {"--steps": golden.optimizer.steps, "--optimizer": golden.optimizer.name}
    for flag, value in asked.items():
        if value is not None and value != held[flag]:
            raise ValueError(f"{flag}: {path!r} holds {held[flag]}, got {value}")
    return golden.optimizer


def _images(request: Request, model: VisionModel) -> np.ndarray:
    """Images (B, H, W, C) in float64, of values that float32 has too."""
    if request.inputs is not None:
        kinds = (np.ndarray, jax.Array)
        return np.asarray(make_object(request.inputs, kinds, "an array"))
    if request.images is None:
        assert request.name is not None
        fields = {**model_fields(request.name), **request.fields}
        # A design with a class token for each slot takes batches of that size alone.
        batch = request.batch or max(2, fields.get("class_token_batch", 1))
        shape = (batch, *model.img_size, model.in_chans)
        drawn = np.random.default_rng(request.seed).normal(size=shape)
        return drawn.astype(np.float32).astype(np.float64)
    images = _read_array(request.images)
    if not isinstance(images, np.ndarray) or images.ndim != 4:
        got = list(images.shape) if isinstance(images, np.ndarray) else "an archive"
        raise ValueError(f"--images: wanted a .npy file of (B, H, W, C), got {got}")
    if not np.issubdtype(images.dtype, np.floating):
        raise ValueError(f"--images: wanted normalised floats, got {images.dtype}")
    if images.shape[-1] != model.in_chans:
        raise ValueError(
            f"--images: wanted (B, H, W, {model.in_chans}), got {list(images.shape)}: "
            "channels come last"
        )
    return images.astype(np.float64)


def _read_array(file: str) -> Any:
    try:
        return np.load(io.BytesIO(read_bytes(Path(file))), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"--images: {file!r} cannot be read: {error}") from error


def _make_golden(request: Request, spec: str, out: str) -> None:
    from vit_jax.parity.golden_writer import write_golden  # needs torch

    model = None
    if request.name is not None:
        model = abstract_model(request.name, **request.fields)
    elif request.fields:
        raise ValueError("--field: wanted the NAME of a registered model beside it")
    with blaming_the_module(spec):
        path = write_golden(
            lambda: make_module(spec, request.seed),
            out,
            image_shape=_image_shape(request.image_shape, model),
            batch=request.batch or 2,
            num_classes=request.classes,
            seed=request.seed,
            optimizer=_optimizer(request) or OptimizerSpec(),
            source=spec,
            model=None if request.name is None else (request.name, dict(request.fields)),
        )
    print(f"wrote {path} and {path.with_suffix('.npz').name}")


def _image_shape(text: str | None, model: VisionModel | None) -> tuple[int, int, int]:
    """(C, H, W) as given, or as the named model takes it."""
    if text is not None:
        if not re.fullmatch(r"[1-9]\d*,[1-9]\d*,[1-9]\d*", text):
            raise ValueError(f"--image-shape: wanted C,H,W such as 3,224,224, got {text!r}")
        channels, height, width = map(int, text.split(","))
        return channels, height, width
    if model is None:
        raise ValueError("--make-golden: wanted --image-shape C,H,W, or the NAME of a model")
    return (model.in_chans, *model.img_size)
