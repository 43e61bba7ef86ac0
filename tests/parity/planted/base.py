"""What a planted fault and a clean pair are, and how one is built and compared."""

import contextlib
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import vit_jax
import vit_jax.parity
from vit_jax.parity import OptimizerSpec, Report, compare

Arrays = dict[str, np.ndarray]


class Port(nnx.Module):
    """A module of a port; `bugs` are the faults planted in its own code."""

    bugs: frozenset[str] = frozenset()

    def has(self, bug: str) -> bool:
        return bug in self.bugs


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A PyTorch module, its port, and an input for both.

    Attributes:
      theirs: makes the PyTorch module.
      ours: makes the port, without bugs.
      inputs: makes what both are given; images are (B, H, W, C).
      settings: arguments of `compare`.
      abstract: whether the port may be made by `nnx.eval_shape`, which is quicker.
    """

    theirs: Callable[[], torch.nn.Module]
    ours: Callable[[nnx.Rngs], nnx.Module]
    inputs: Callable[[], Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    abstract: bool = True


ARCHITECTURES: dict[str, Architecture] = {}


def architecture(name: str, *args: Any, **kwargs: Any) -> None:
    assert name not in ARCHITECTURES
    ARCHITECTURES[name] = Architecture(*args, **kwargs)


@dataclasses.dataclass(frozen=True)
class Fault:
    """A fault planted in a port.

    Attributes:
      name: of the row.
      arch: in which architecture.
      stages: PyTorch's paths of the module in whose own code the wrong value is made: any is right.
      truth: what is wrong, in a sentence.
      accepts: true explanations: `diagnosis.fault`, or a part of its text.
      bugs: those of `Port`, "bug" in every module or "path:bug" in one.
      edit: changes the port after its weights are loaded.
      arrays: changes the arrays that the port is given.
      settings: arguments of `compare`.
      needs: a key of `NEEDS`, where today's `compare` cannot run it.
      is_pair: whether there are two faults: an explanation of one must not claim to be complete.
    """

    name: str
    arch: str
    stages: frozenset[str]
    truth: str
    accepts: frozenset[str]
    bugs: tuple[str, ...] = ()
    edit: Callable[[Any], None] | None = None
    arrays: Callable[[Arrays], None] | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: str | None = None
    is_pair: bool = False

    def explained_by(self, fault: str, text: str) -> bool:
        return fault in self.accepts or any(a.lower() in text.lower() for a in self.phrases)

    @property
    def phrases(self) -> list[str]:
        """The accepted parts of a text: a lone word is a fault's name, and counts in full alone."""
        return [accepted for accepted in self.accepts if " " in accepted]


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, arch: str, stages: str, accepts: str, truth: str, bugs: str = "", **fields: Any
) -> Fault:
    """A row of the table; `stages` and `accepts` are separated by "|", `bugs` by spaces."""
    settings = {"grad": False, **fields.pop("settings", {})}
    row = Fault(
        name,
        arch,
        frozenset(stages.split("|")),
        truth,
        frozenset(accepts.split("|")),
        tuple(bugs.split()),
        settings=settings,
        **fields,
    )
    assert name not in FAULTS, name
    FAULTS[name] = row
    return row


def pair(first: str, second: str) -> Fault:
    """Two faults of one model: the place is that of the first, which runs before the other."""
    a, b = FAULTS[first], FAULTS[second]
    assert a.arch == b.arch, (first, second)

    def both(one: Callable | None, other: Callable | None) -> Callable[[Any], None]:
        def run(thing: Any) -> None:
            for function in (one, other):
                if function is not None:
                    function(thing)

        return run

    row = Fault(
        f"{first} + {second.removeprefix(a.arch + ' ')}",
        a.arch,
        a.stages,
        f"{a.truth} And: {b.truth}",
        a.accepts | b.accepts,
        (*a.bugs, *b.bugs),
        both(a.edit, b.edit),
        both(a.arrays, b.arrays),
        {**a.settings, **b.settings, "grad": a.settings["grad"] or b.settings["grad"]},
        a.needs or b.needs,
        is_pair=True,
    )
    FAULTS[row.name] = row
    return row


@dataclasses.dataclass(frozen=True)
class Clean:
    """A correct port.

    Attributes:
      name: of the row.
      make: (what `compare` takes as the model, the PyTorch module, the inputs).
      settings: arguments of `compare`.
      needs: a key of `NEEDS`, where today's `compare` cannot run it.
    """

    name: str
    make: Callable[[], tuple[Any, torch.nn.Module, Any]]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    needs: str | None = None


CLEAN: dict[str, Clean] = {}


def clean(name: str, needs: str | None = None, **settings: Any) -> Callable[[Callable], Callable]:
    """Registers a function that makes the row's (model, reference, inputs)."""

    def register(make: Callable[[], Any]) -> Callable[[], Any]:
        assert name not in CLEAN, name
        CLEAN[name] = Clean(name, make, settings, needs)
        return make

    return register


def _compare_takes(*names: str) -> bool:
    return set(names) <= set(inspect.signature(compare).parameters)


# What rows need beyond the interface of the day on which they were written: change the test, and
# the arguments in the rows, where the interface turns out otherwise.
NEEDS: dict[str, Callable[[], bool]] = {
    "linen": lambda: hasattr(vit_jax.parity, "from_linen"),
    "equinox": lambda: hasattr(vit_jax.parity, "from_equinox"),
    "train_mode": lambda: _compare_takes("mode"),
    "several_inputs": lambda: _compare_takes("inputs"),
    "schedule": lambda: "schedule" in inspect.signature(OptimizerSpec).parameters,
}


def can_run(row: Fault | Clean) -> bool:
    return row.needs is None or NEEDS[row.needs]()


# ---------------------------------------------------------------------------- building


def redraw(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of unit scale in eval mode: what starts as zero or one would hide its faults."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(0.3 * noise + (1.0 if name.endswith("weight") else 0.0))
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module.eval()


def carry(
    port: nnx.Module, module: torch.nn.Module, change: Callable[[Arrays], None] | None = None
) -> None:
    """Loads the module's arrays; running statistics by hand where `load_state_dict` takes none."""
    arrays = {name: tensor.detach().numpy().copy() for name, tensor in module.state_dict().items()}
    if change is not None:
        change(arrays)
    try:
        vit_jax.load_state_dict(port, arrays)
    except ValueError:
        ends = ("running_mean", "running_var", "num_batches_tracked")
        kept = {name: array for name, array in arrays.items() if not name.endswith(ends)}
        vit_jax.load_state_dict(port, kept)
    for path, child in nnx.iter_modules(port):
        prefix = ".".join(map(str, path))
        if isinstance(child, nnx.BatchNorm) and f"{prefix}.running_mean" in arrays:
            child.mean.set_value(jnp.asarray(arrays[f"{prefix}.running_mean"]))
            child.var.set_value(jnp.asarray(arrays[f"{prefix}.running_var"]))


def plant(port: nnx.Module, bugs: tuple[str, ...]) -> None:
    places = [bug.rpartition(":") for bug in bugs]
    for path, module in nnx.iter_modules(port):
        if isinstance(module, Port):
            here = ".".join(map(str, path))
            found = {bug for place, colon, bug in places if not colon or place == here}
            module.bugs = frozenset(found)


def build(arch: str, row: Fault | None = None) -> tuple[nnx.Module, torch.nn.Module, Any]:
    """The port, with a row's fault planted in it, its reference, and the inputs."""
    found = ARCHITECTURES[arch]
    torch.manual_seed(0)
    reference = redraw(found.theirs())
    make = lambda: found.ours(nnx.Rngs(0))  # noqa: E731
    port = nnx.eval_shape(make) if found.abstract else make()
    carry(port, reference, None if row is None else row.arrays)
    port.eval()
    if row is not None:
        plant(port, row.bugs)
        if row.edit is not None:
            row.edit(port)
    return port, reference, found.inputs()


@contextlib.contextmanager
def as_for_users():
    """JAX's defaults, which tests of the package are stricter than."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def run_fault(row: Fault) -> Report:
    with as_for_users():
        port, reference, inputs = build(row.arch, row)
        settings = {"precisions": ("float64",), **ARCHITECTURES[row.arch].settings}
        settings |= row.settings
        if settings.get("mode") == "train":
            port.train()
            reference.train()
        return compare(port, reference, inputs, **settings)


def run_clean(row: Clean) -> Report:
    with as_for_users():
        model, reference, inputs = row.make()
        return compare(model, reference, inputs, **row.settings)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def ids(*shape: int, vocabulary: int = 13, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, vocabulary, size=shape)
