"""One run of a PyTorch module in one precision, with every stage, gradient and optimizer step."""

import collections
import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.inspect.stages import BEFORE, Outputs, arrays_of, map_arrays, outputs_of
from vit_jax.parity.golden_weights import make_labels
from vit_jax.parity.held import is_rounded, moved_by_a_digit
from vit_jax.parity.inputs import Inputs
from vit_jax.parity.torch_widen import torch_widening
from vit_jax.parity.values import OptimizerSpec, rms

if TYPE_CHECKING:
    import torch

# A module that answers the same input twice does so to the order of its sums, which several threads
# may change: about 1e-15. Dropout moves it by its whole size.
_REPEATED = 1e-9

Arrays = dict[str, np.ndarray]


def import_torch() -> Any:
    """PyTorch, which the package itself does not need.

    Raises:
      ValueError: it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise ValueError(
            "a live PyTorch module needs PyTorch: `pip install torch` (a golden file does not)"
        ) from error
    return torch


@dataclasses.dataclass
class TorchRun:
    """What a module answered in one precision; every array by PyTorch's names, in its layout.

    Attributes:
      stages: see `values.Reference`; so are the others.
      output: the value of the stage "".
      outputs: the names of the arrays of each stage that has several, or one inside of something.
      untrained: the parameters that are trainable and have no gradient, by name.
      islands: of a run in float64 the modules that would have computed in narrower types, and
        these types.
      refusal: why they were not widened; "" where they were.
      held: the modules with constants of a narrow type, which keep their rounding.
      statistics: in train mode, the buffers that one run changes, after it. In `trained` they stand
        as they are after the runs of all steps and of the last loss.
      dropped: in train mode, the modules whose dropout was left out.
    """

    stages: Arrays
    output: np.ndarray
    outputs: dict[str, Outputs]
    labels: np.ndarray | None
    direction: np.ndarray | None
    loss: np.ndarray | None = None
    gradients: Arrays = dataclasses.field(default_factory=dict)
    stage_gradients: Arrays = dataclasses.field(default_factory=dict)
    image_gradient: np.ndarray | None = None
    input_gradients: Arrays = dataclasses.field(default_factory=dict)
    untrained: Arrays = dataclasses.field(default_factory=dict)
    losses: np.ndarray | None = None
    trained: Arrays = dataclasses.field(default_factory=dict)
    islands: dict[str, set[str]] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    held: list[str] = dataclasses.field(default_factory=list)
    statistics: Arrays = dataclasses.field(default_factory=dict)
    dropped: list[str] = dataclasses.field(default_factory=list)


def to_numpy(tensor: "torch.Tensor") -> np.ndarray:
    """A copy in float64 or, of narrower floats, float32 (exact: half precision is)."""
    torch = import_torch()
    tensor = tensor.detach().cpu()
    narrow = tensor.is_floating_point() and tensor.dtype != torch.float64
    return np.array((tensor.float() if narrow else tensor.double()).numpy())


def _tensors_of(value: Any) -> "tuple[dict[str, torch.Tensor], Outputs | None]":
    """The tensors of floats and of whole numbers in a value by name, and which is the answer."""
    torch = import_torch()
    arrays = arrays_of(value, lambda part: isinstance(part, torch.Tensor))
    numbers = {
        name: tensor
        for name, tensor in arrays.items()
        if tensor.dtype != torch.bool and not tensor.is_complex()
    }
    return numbers, outputs_of(numbers, lambda name: numbers[name].is_floating_point())


def _answer(output: Any) -> "torch.Tensor | None":
    """Of what a whole model returns, the tensor that is its answer."""
    tensors, outputs = _tensors_of(output)
    answer = None if outputs is None else tensors[outputs.answer]
    return answer if answer is not None and answer.is_floating_point() else None


class _Recorder:
    """Hooks that copy what goes into and comes out of every submodule, at the time of the call."""

    def __init__(self, module: "torch.nn.Module"):
        self.stages: Arrays = {}
        self.outputs: dict[str, Outputs] = {}
        self.gradients: Arrays = {}
        self._calls: collections.Counter[str] = collections.Counter()
        self._running: dict[str, list[str]] = collections.defaultdict(list)
        self._entered: list[str] = []
        self._handles = []
        for path, part in module.named_modules():
            before = functools.partial(self._enter, path)
            after = functools.partial(self._leave, path)
            self._handles += [
                part.register_forward_pre_hook(before, with_kwargs=True),
                part.register_forward_hook(after),
            ]

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    @property
    def path(self) -> str | None:
        """Of the module that is running."""
        return self._entered[-1] if self._entered else None

    def _enter(self, path: str, module: Any, args: Any, kwargs: Any) -> None:
        del module
        call = self._calls[path]
        self._calls[path] += 1
        stage = f"{path}#{call}" if call else path
        self._running[path].append(stage)
        self._entered.append(path)
        tensors, inputs = _tensors_of((*args, *kwargs.values()))
        if inputs is not None:
            self.stages[BEFORE + stage] = to_numpy(tensors[inputs.answer])

    def _leave(self, path: str, module: Any, args: Any, output: Any) -> Any:
        del module, args
        stage = self._running[path].pop()
        self._entered.pop()
        tensors, outputs = _tensors_of(output)
        if outputs is None:
            return None
        value = tensors[outputs.answer]
        self.stages[stage] = to_numpy(value)
        if value is not output:
            self.outputs[stage] = outputs
        for name, part in outputs.parts().items():
            if part:
                self.stages[stage + part] = to_numpy(tensors[name])
        if not value.requires_grad:
            return None
        # The caller goes on with the same memory as another tensor: only what it makes of this one
        # counts, where a module returns its input, or what it has used itself.
        alias = _alias().apply(value, functools.partial(self._differentiated, stage))
        return map_arrays(
            output,
            lambda _, part: alias if part is value else part,
            lambda part: isinstance(part, import_torch().Tensor),
        )

    def _differentiated(self, stage: str, gradient: "torch.Tensor") -> None:
        self.gradients[stage] = to_numpy(gradient)


@functools.cache
def _alias() -> Any:
    """The function of autograd that returns its input and calls back with the gradient by it.

    Unlike a hook, it stays in the graph where an operation in place writes into the tensor, and
    then gives the gradient by what stood there before.
    """

    class Alias(import_torch().autograd.Function):
        @staticmethod
        def forward(ctx: Any, tensor: "torch.Tensor", differentiated: Any) -> "torch.Tensor":
            ctx.differentiated = differentiated
            return tensor.detach()

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            ctx.differentiated(gradients[0])
            return gradients[0], None

    return Alias


def copy_module(
    module: "torch.nn.Module", dtype: "torch.dtype", *, train: bool = False
) -> "torch.nn.Module":
    """A copy on the CPU in eval mode, its floating-point arrays in `dtype`, without gradients.

    Args:
      train: leave it in the modes that it is in.

    Raises:
      ValueError: PyTorch cannot copy it.
    """
    try:
        copied = copy.deepcopy(module)
    except RuntimeError as error:  # of a tensor that is computed and kept as an attribute
        raise ValueError(f"PyTorch cannot copy this module: {error}") from error
    copied = copied.to(device="cpu", dtype=dtype)
    if not train:
        copied.eval()
    copied.zero_grad(set_to_none=True)
    return copied


class _Loss:
    """Mean cross entropy of logits (B, classes), of any other output its mean along a direction.

    Raises:
      ValueError: labels that fit the output in no way.
    """

    def __init__(
        self, output: "torch.Tensor", batch: int, labels: np.ndarray | None, own: Any = None
    ):
        torch = import_torch()
        self._own = own
        shape = tuple(output.shape)
        self.labels = self.direction = None
        if own is not None:
            return
        if len(shape) == 2 and shape[0] == batch and shape[1] > 1:
            classes = shape[1]
            self.labels = make_labels(batch, classes) if labels is None else np.asarray(labels)
            if self.labels.shape != (batch,) or self.labels.dtype.kind not in "iu":
                raise ValueError(
                    f"wanted {batch} whole numbers as labels, got {self.labels.dtype} "
                    f"{list(self.labels.shape)}"
                )
            if self.labels.min() < 0 or self.labels.max() >= classes:
                raise ValueError(
                    f"wanted labels from 0 to {classes - 1}, got {self.labels.min()} to "
                    f"{self.labels.max()}"
                )
            self._target = torch.from_numpy(self.labels.astype(np.int64))
        elif labels is not None:
            raise ValueError(
                f"labels need an output (B, classes), here ({batch}, 2 or more); the module "
                f"answered {list(shape)}: leave them out"
            )
        else:
            self.direction = np.random.default_rng(0).standard_normal(shape)
            self._target = torch.from_numpy(self.direction).to(output.dtype)

    def __call__(self, output: "torch.Tensor") -> "torch.Tensor":
        if self._own is not None:
            return self._own(output)
        if self.labels is None:
            return (output * self._target).mean()
        return import_torch().nn.functional.cross_entropy(output, self._target)


def run_torch(
    module: "torch.nn.Module",
    images: np.ndarray | Inputs,
    dtype: "torch.dtype",
    *,
    labels: np.ndarray | None = None,
    loss: Any = None,
    grad: bool = True,
    optimizer: OptimizerSpec | None = None,
    train: bool = False,
    jitter: bool = False,
    called: Mapping[str, str] | None = None,
) -> TorchRun:
    """Runs a copy of the module in eval mode, in float64 throughout where that is `dtype`.

    What it casts to narrower types is widened, unless it cannot run so: see `torch_widening`.

    Args:
      module: left as it is.
      images: in PyTorch's layout; whole numbers are given as they are.
      dtype: torch.float32 or torch.float64, of weights and images.
      train: in the modes that it is in, without dropout.
      jitter: move the narrow constants that are widened.
      labels: classes (B,) of the loss; see `_Loss`.
      loss: a function of the output in its place.
      grad: also differentiate.
      optimizer: also train, from the module's own weights.
      called: names for the optimizer's groups, by the module's own where they differ.

    Raises:
      ValueError: no floating-point tensor comes out; another one at a second call; nothing of what
        comes out can be differentiated; labels that do not fit.
    """
    torch = import_torch()
    settings: dict[str, Any] = {"labels": labels, "grad": grad, "optimizer": optimizer}
    settings |= {"loss": loss, "train": train, "called": called}
    if dtype != torch.float64:
        return _run(module, images, dtype, **settings)
    islands: dict[str, set[str]] = {}
    running = _Running()

    held: set[str] = set()

    def note(narrow: str) -> None:
        if running.path is not None:
            islands.setdefault(running.path, set()).add(narrow)

    def hold(array: np.ndarray, eps: float) -> np.ndarray:
        if not is_rounded(array):
            return array
        if running.path is not None:
            held.add(running.path)
        return moved_by_a_digit(array, eps) if jitter else array

    try:
        wide = torch_widening(module, note, hold)
        run = _run(module, images, dtype, wide=wide, running=running, **settings)
    except ValueError:
        raise
    except Exception as error:
        run = _run(module, images, dtype, **settings)
        run.refusal = f"{type(error).__name__}: {error}".splitlines()[0]
    run.islands, run.held = islands, sorted(held)
    return run


def prepared(
    module: "torch.nn.Module",
    images: Any,
    dtype: "torch.dtype",
    *,
    train: bool,
    grad: bool = False,
) -> "tuple[torch.nn.Module, list[str], Inputs]":
    """A copy to be run, the paths of the dropout that it is without, and its inputs as tensors."""
    torch = import_torch()
    copied = copy_module(module, dtype, train=train)
    dropped = without_dropout(copied) if train else []
    inputs = images if isinstance(images, Inputs) else Inputs({0: images})

    def tensor_of(name: str, array: np.ndarray) -> "torch.Tensor":
        del name
        tensor = torch.from_numpy(array)
        return tensor.to(dtype).requires_grad_(grad) if array.dtype.kind == "f" else tensor

    return copied, dropped, inputs.map(tensor_of)


@dataclasses.dataclass
class _Running:
    """Which module is."""

    recorder: _Recorder | None = None

    @property
    def path(self) -> str | None:
        return None if self.recorder is None else self.recorder.path


def _run(
    module: "torch.nn.Module",
    images: Any,
    dtype: "torch.dtype",
    *,
    labels: np.ndarray | None,
    loss: Any,
    grad: bool,
    optimizer: OptimizerSpec | None,
    train: bool,
    called: Mapping[str, str] | None,
    wide: contextlib.AbstractContextManager[None] | None = None,
    running: _Running | None = None,
) -> TorchRun:
    """See `run_torch`; a copy is made outside of `wide`, constants as they are."""
    torch = import_torch()
    copied, dropped, given = prepared(module, images, dtype, train=train, grad=grad)
    buffers = {n: b.clone() for n, b in copied.named_buffers()}
    if not grad:
        copied.requires_grad_(False)  # a large model's graph takes gigabytes

    def answer() -> "torch.Tensor":
        # A copy, so that a module may write into what it is given.
        output = _answer(given.map(lambda _, tensor: tensor.clone()).call(copied))
        if output is None:
            raise ValueError("wanted a module that answers with a floating-point tensor")
        return output

    # Gradients whatever the caller has; and no fast path, on which PyTorch's encoder layers do not
    # call what is inside them.
    with torch.enable_grad(), no_fast_path(), wide or contextlib.nullcontext():
        recorder = _Recorder(copied)
        if running is not None:
            running.recorder = recorder
        output = answer()
        recorder.remove()
        loss_of = _Loss(output, len(given), labels, loss)
        run = TorchRun(
            recorder.stages,
            to_numpy(output),
            recorder.outputs,
            loss_of.labels,
            loss_of.direction,
            statistics=_changed(copied, buffers),
            dropped=dropped,
        )
        if dtype == torch.float64:
            _check_repeats(run.output, to_numpy(answer()))
        _put_back(copied, buffers)
        if not grad:
            return run
        value = loss_of(output)
        if not value.requires_grad:
            raise ValueError("the module's output cannot be differentiated: pass grad=False")
        value.backward()
        run.loss, run.stage_gradients = to_numpy(value), recorder.gradients
        by_input = {n: to_numpy(t.grad) for n, t in given.arrays().items() if t.grad is not None}
        if isinstance(images, Inputs):
            run.input_gradients = by_input
        else:
            run.image_gradient = by_input.get("0")
        trainable = {n: p for n, p in copied.named_parameters() if p.requires_grad}
        for name, parameter in trainable.items():
            if parameter.grad is None:
                run.untrained[name] = to_numpy(parameter)
            else:
                run.gradients[name] = to_numpy(parameter.grad)
        if optimizer is not None:
            called = called or {}
            step = _Optimizer(optimizer, ((called.get(n, n), p) for n, p in trainable.items()))
            losses = []
            for _ in range(optimizer.steps):
                step.zero_grad()
                value = loss_of(answer())
                value.backward()
                losses.append(value.item())
                step.step()
            run.losses = np.array([*losses, loss_of(answer()).item()])
            run.trained = {name: to_numpy(parameter) for name, parameter in trainable.items()}
            run.trained |= _changed(copied, buffers)
    return run


def without_dropout(module: "torch.nn.Module") -> list[str]:
    """Turns off what drops at random, in place, and returns the paths of it.

    By class: what has "drop" in its name; and the rates of PyTorch's attention and recurrence.
    """
    paths = []
    for path, part in module.named_modules():
        named = "drop" in type(part).__name__.lower() and not list(part.children())
        rates = (getattr(part, name, None) for name in ("p", "drop_prob", "rate", "dropout"))
        if not part.training or not any(isinstance(rate, float) and rate > 0 for rate in rates):
            continue
        if named:
            part.eval()
            paths.append(path)
        elif isinstance(getattr(part, "dropout", None), float):
            setattr(part, "dropout", 0.0)  # noqa: B010 - no module nor tensor
            paths.append(path)
    return paths


def _changed(module: "torch.nn.Module", buffers: "dict[str, torch.Tensor]") -> Arrays:
    torch = import_torch()
    return {
        name: to_numpy(buffer)
        for name, buffer in module.named_buffers()
        if buffer.is_floating_point() and name in buffers and not torch.equal(buffer, buffers[name])
    }


def _put_back(module: "torch.nn.Module", buffers: "dict[str, torch.Tensor]") -> None:
    for name, buffer in module.named_buffers():
        if name in buffers and buffer.shape == buffers[name].shape:
            buffer.data.copy_(buffers[name])  # autograd may have kept it


@contextlib.contextmanager
def no_fast_path() -> Iterator[None]:
    torch = import_torch()
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def _check_repeats(first: np.ndarray, second: np.ndarray) -> None:
    """Refuses a random module: its distance from itself would excuse every difference as noise."""
    off = float(np.max(np.abs(second - first), initial=0.0))
    if off > _REPEATED * rms(first):
        raise ValueError(
            "wanted a module that answers the same images in the same way: without dropout its "
            f"second answer is {off:.1e} off its first (dropout that is always on, or a state of "
            "its own)"
        )


class _Optimizer:
    """PyTorch's; it leaves alone what has no gradient, decay included."""

    def __init__(self, spec: OptimizerSpec, named: Iterable[tuple[str, Any]]):
        torch = import_torch()
        self.spec, self.number = spec, 0
        by_settings: dict[tuple[float, float], list[Any]] = {}
        for name, parameter in named:
            by_settings.setdefault(spec.settings_of(name), []).append(parameter)
        groups = [
            {"params": parameters, "weight_decay": decay, "factor": factor}
            for (decay, factor), parameters in by_settings.items()
        ]
        self.parameters = [p for parameters in by_settings.values() for p in parameters]
        adam: dict[str, Any] = {"betas": spec.betas, "eps": spec.eps}
        sgd: dict[str, Any] = {"momentum": spec.betas[0]}
        make, own = {
            "adamw": (torch.optim.AdamW, adam),
            "adam": (torch.optim.Adam, adam),
            "sgd": (
                torch.optim.SGD,
                {**sgd, "nesterov": spec.nesterov, "dampening": spec.dampening},
            ),
            "rmsprop": (torch.optim.RMSprop, {**sgd, "alpha": spec.betas[1], "eps": spec.eps}),
        }[spec.name]
        self.optimizer = make(groups, lr=spec.rates[0], **own)

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()

    def step(self) -> None:
        utils = import_torch().nn.utils
        if self.spec.clip_norm is not None:
            utils.clip_grad_norm_(self.parameters, self.spec.clip_norm)
        if self.spec.clip_value is not None:
            utils.clip_grad_value_(self.parameters, self.spec.clip_value)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.rates[self.number] * group["factor"]
        self.optimizer.step()
        self.number += 1
