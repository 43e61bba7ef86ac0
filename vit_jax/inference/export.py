"""Models as files that run without this package, their weights inside: StableHLO or ONNX."""

import dataclasses
import importlib.metadata
import inspect
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.data.augment import normalize
from vit_jax.data.evaluation_geometry import evaluation_geometry
from vit_jax.inference.onnx import PACKAGES as ONNX_PACKAGES
from vit_jax.inference.onnx import import_onnx, read_onnx, write_onnx
from vit_jax.layers.checks import check_choice
from vit_jax.layers.forms import eval_graph
from vit_jax.models.base import VisionModel
from vit_jax.models.description import num_parameters
from vit_jax.weights.atomic import check_new_folder, whole
from vit_jax.weights.formats import SPEC
from vit_jax.weights.spec_json import spec_to_dict

PLATFORMS = ("cpu", "cuda", "tpu")
INPUTS = ("float32", "uint8")
FORMATS = {"stablehlo": "model.stablehlo", "onnx": "model.onnx"}
_ABOUT, _RUN = "model.json", "run.py"
FILES = (*FORMATS.values(), _ABOUT, _RUN)

# Of the difference between the file and the live model, relative to the largest output where that
# is above 1. Both are compiled from the same operations: it is 0 but for other fusions.
BOUNDS = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
ONNX_BOUND = 1e-5  # another library's operations, in float32
_BATCH_SIZES = (1, 3)
# A serialized program is a flatbuffer, whose offsets have 31 bits, or a protocol buffer, of as
# many bytes at most; some room for the operations.
_LARGEST_WEIGHTS = 2**31 - 2**26
_COMPATIBILITY = "jax and jaxlib from 3 weeks older to 6 months newer than these versions"


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """What was written, and how it compares with the live model.

    Attributes:
      folder: with a program, `model.json` and `run.py`.
      format: of the program.
      platforms: that the program was lowered for; none of ONNX.
      verified_on: the platform of this machine that it was run on.
      batch_sizes: of the random images that it was run on.
      largest_difference: between the outputs of the file and of the live model; absolute.
      bound: that it had to stay within.
      size: of the program, weights included, in bytes.
    """

    folder: Path
    format: str
    platforms: tuple[str, ...]
    verified_on: str
    batch_sizes: tuple[int, ...]
    largest_difference: float
    bound: float
    size: int


def export_model(
    model: VisionModel[Any],
    out: str | os.PathLike[str],
    *,
    format: str = "stablehlo",
    platforms: Sequence[str] | None = None,
    input: str = "float32",
) -> ExportReport:
    """Writes a model as a folder that runs without this package, and verifies what was written.

    The folder holds `model.stablehlo`, which `jax.export.deserialize` reads: one program for all
    platforms and batch sizes, its weights constants; or `model.onnx`, likewise for any batch size;
    `model.json`, which tells its input, output, classes and versions; and `run.py`, which runs it.
    The file is read back and run beside the live model before the folder takes its place.

    Outputs are of float32, or of float64 where the model is.

    Args:
      model: such as of `vit_jax.from_pretrained`; it is exported in eval mode.
      out: the path of a new folder, or of one that was written here.
      format: "stablehlo" or "onnx".
      platforms: of StableHLO, some of "cpu", "cuda" and "tpu", of which one at least must be on
        this machine; None: all.
      input: "float32" for normalised images (float64 for a model of float64), "uint8" for pixels,
        which the program itself normalises.

    Raises:
      ValueError: `out` is something else; an unknown platform or none of this machine; pixels for
        a model that does not know its normalisation; weights beyond 2 GiB; for ONNX a model that is
        not of float32, or jax2onnx is not installed; a difference from the live model beyond
        `BOUNDS` (`ONNX_BOUND`), and then nothing is written.
    """
    folder = Path(out)
    check_new_folder(folder, FILES)
    check_choice("format", format, tuple(FORMATS))
    check_choice("input", input, INPUTS)
    if format == "onnx" and model.dtype != jnp.float32:
        raise ValueError(f"format onnx: wanted a model of dtype float32, got {model.dtype}")
    platforms = check_platforms(format, platforms)
    device = _device_to_verify_on(platforms or ("cpu",))
    _check_weights(model)
    function, images = _function(model, input)
    state = nnx.state(model)

    def with_weights(images: jax.Array) -> jax.Array:
        return function(state, images)

    with whole(folder) as partial:
        partial.mkdir()
        path = partial / FORMATS[format]
        if format == "onnx":
            write_onnx(with_weights, images, path)
        else:
            _write_stablehlo(with_weights, images, platforms, path)
        bound, difference = _verify(path, format, function, model, images, device)
        report = ExportReport(
            folder=folder,
            format=format,
            platforms=platforms,
            verified_on=device.platform,
            batch_sizes=_BATCH_SIZES,
            largest_difference=difference,
            bound=bound,
            size=path.stat().st_size,
        )
        outputs = jax.eval_shape(with_weights, images)
        about = _about(model, images, outputs, report)
        (partial / _ABOUT).write_text(json.dumps(about, indent=2) + "\n")
        (partial / _RUN).write_text(_run_script())
    return report


def check_platforms(format: str, platforms: Sequence[str] | None) -> tuple[str, ...]:
    """The platforms that `export_model` would lower for: what of its request needs no model.

    Args:
      format: "stablehlo" or "onnx".
      platforms: of StableHLO, some of "cpu", "cuda" and "tpu"; None: all.

    Returns:
      The platforms; of ONNX none.

    Raises:
      ValueError: an unknown or repeated platform, or none; platforms for ONNX, or jax2onnx is not
        installed.
    """
    if format == "onnx":
        if platforms is not None:
            raise ValueError(f"platforms are StableHLO's, not ONNX's: got {', '.join(platforms)}")
        import_onnx()
        return ()
    platforms = PLATFORMS if platforms is None else tuple(platforms)
    if not set(platforms) <= set(PLATFORMS) or len(set(platforms)) < max(1, len(platforms)):
        raise ValueError(
            f"platforms: wanted some of {', '.join(PLATFORMS)}, each once, got "
            f"{', '.join(platforms) or 'none'}"
        )
    return platforms


def _run_script() -> str:
    """`run_exported.py` with what it imports of this package in its place."""
    lines = Path(__file__).with_name("run_exported.py").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("from vit_jax."))
    function = inspect.getsource(evaluation_geometry).rstrip().splitlines()
    return "\n".join([*lines[:at], "", *function, *lines[at + 1 :]]) + "\n"


# Of a model's arrays and images: its outputs, float32 or wider.
_Function = Callable[[nnx.State, jax.Array], jax.Array]


def _function(model: VisionModel[Any], input: str) -> tuple[_Function, jax.ShapeDtypeStruct]:
    """What is exported, and its images: those of a batch of one."""
    graph = eval_graph(model, None)  # the form that suits every platform
    wide = jnp.promote_types(model.dtype, jnp.float32)
    preprocessing = model.spec.preprocessing
    if input == "uint8" and preprocessing is None:
        raise ValueError(
            "input uint8: this model does not know how its images are normalised; export it with "
            "input float32"
        )

    def function(state: nnx.State, images: jax.Array) -> jax.Array:
        if input == "uint8":
            assert preprocessing is not None
            images = normalize(images, preprocessing.mean, preprocessing.std, wide)
        return nnx.merge(graph, state)(images).astype(wide)

    shape = (1, *model.input_size, model.in_chans)
    return function, jax.ShapeDtypeStruct(shape, jnp.uint8 if input == "uint8" else wide)


def _write_stablehlo(
    function: Callable[[jax.Array], jax.Array],
    images: jax.ShapeDtypeStruct,
    platforms: Sequence[str],
    path: Path,
) -> None:
    (batch,) = jax.export.symbolic_shape("batch")
    any_batch = jax.ShapeDtypeStruct((batch, *images.shape[1:]), images.dtype)
    exported = jax.export.export(jax.jit(function), platforms=tuple(platforms))(any_batch)
    path.write_bytes(exported.serialize())


def _read(path: Path, format: str) -> Callable[[Any], Any]:
    if format == "onnx":
        return read_onnx(path)
    return jax.jit(jax.export.deserialize(bytearray(path.read_bytes())).call)


def _device_to_verify_on(platforms: Sequence[str]) -> Any:
    """The first device here of a platform, a `jax.Device`, or raises ValueError."""
    for platform in platforms:
        try:
            return jax.local_devices(backend=platform)[0]
        except RuntimeError:
            continue
    raise ValueError(
        f"platforms: this machine has none of {', '.join(platforms)}, so what is written could not "
        f"be verified: add {jax.default_backend()}"
    )


def _check_weights(model: nnx.Module) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    if size > _LARGEST_WEIGHTS:
        raise ValueError(
            f"weights of {size / 2**30:.2f} GiB: a file holds at most "
            f"{_LARGEST_WEIGHTS / 2**30:.2f}; param_dtype=bfloat16 halves them"
        )


def _verify(
    path: Path,
    format: str,
    function: _Function,
    model: VisionModel,
    images: jax.ShapeDtypeStruct,
    device: Any,
) -> tuple[float, float]:
    """The bound, and the largest difference between a file and the live model, if within it."""
    exported, relative = _read(path, format), BOUNDS[model.dtype.name]
    if format == "onnx":
        relative = ONNX_BOUND
    state, live = jax.device_put(nnx.state(model), device), jax.jit(function)
    generator = np.random.default_rng(0)
    bound = difference = 0.0
    for batch_size in _BATCH_SIZES:
        shape = (batch_size, *images.shape[1:])
        if images.dtype == jnp.uint8:
            array = generator.integers(256, size=shape, dtype=np.uint8)
        else:
            array = generator.normal(size=shape).astype(images.dtype)
        batch = jax.device_put(array, device)
        want, got = np.asarray(live(state, batch)), np.asarray(exported(batch))
        allowed = relative * max(1.0, float(np.abs(want).max()))
        apart = float(np.abs(got - want).max())
        if not apart <= allowed:  # NaN is refused too
            raise ValueError(
                f"the exported model differs from the live one by {apart:.3g} at batch size "
                f"{batch_size}, {allowed:.3g} is allowed: nothing was written"
            )
        bound, difference = max(bound, allowed), max(difference, apart)
    return bound, difference


def _about(
    model: VisionModel[Any],
    images: jax.ShapeDtypeStruct,
    outputs: jax.ShapeDtypeStruct,
    report: ExportReport,
) -> dict[str, Any]:
    """What model.json says."""
    spec = model.spec
    packages = ["vit-jax", "jax", "jaxlib", "flax"]
    about = {
        SPEC: spec_to_dict(spec),
        "model": spec.name,
        "source": spec.source,
        "parameters": num_parameters(model),
        "input": {
            "shape": ["batch", *images.shape[1:]],
            "dtype": jnp.dtype(images.dtype).name,
            "layout": "NHWC",
            "values": "pixels, 0 to 255"
            if images.dtype == jnp.uint8
            else "pixels / 255, minus mean, divided by std",
        },
        "preprocessing": spec.preprocessing and dataclasses.asdict(spec.preprocessing),
        "output": {
            "shape": ["batch", *outputs.shape[1:]],
            "dtype": jnp.dtype(outputs.dtype).name,
            "values": _values(model),
        },
        "class_names": [spec.label(index) for index in range(model.num_classes)],
        "verified": {
            "platform": report.verified_on,
            "batch_sizes": list(report.batch_sizes),
            "largest_difference": report.largest_difference,
            "bound": report.bound,
        },
    }
    if report.format == "onnx":
        packages += ONNX_PACKAGES
    else:
        about["platforms"] = list(report.platforms)
        about["calling_convention_version"] = (
            jax.export.maximum_supported_calling_convention_version
        )
        about["compatible_with"] = _COMPATIBILITY
    about["versions"] = {package: importlib.metadata.version(package) for package in packages}
    return about


def _values(model: VisionModel[Any]) -> str:
    """What the outputs are, in words."""
    if not model.num_classes:
        return "features"
    target = model.spec.target
    if target is None:
        return "logits"
    if target.kind == "multilabel":
        return "logits of labels, each by itself"
    return "numbers, minus the mean, divided by the std of vit_jax.target"
