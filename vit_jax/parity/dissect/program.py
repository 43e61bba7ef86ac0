"""What a PyTorch module calls, recorded inside one of its modules, and run again with a change."""

import contextlib
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vit_jax.inspect.stages import map_arrays
from vit_jax.parity.dissect.watch import Site, Stack, is_tensor, tensors_in, watching
from vit_jax.parity.inputs import Inputs
from vit_jax.parity.torch_run import (
    Arrays,
    TorchRun,
    import_torch,
    no_fast_path,
    prepared,
    run_torch,
    to_numpy,
)
from vit_jax.parity.torch_widen import torch_widening

if TYPE_CHECKING:
    import torch

# Of one recorded program: more is not worth the memory.
_MOST_BYTES = 2 << 30
# A change of a call: (function, args, kwargs) to the output. And of a tensor.
Apply = Callable[[Callable[..., Any], tuple, dict], Any]
Insert = Callable[[Any], Any]


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of a tensor in a program."""

    index: int


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of a function of tensors.

    Attributes:
      function: see `Apply`; so are `args` and `kwargs`, with slots for their tensors.
      named: the function that names its parameters: `function` before it was changed.
      slots: of the tensors that go in.
      outputs: of those that come out, in order.
      stages: of the modules that were running, the innermost last.
      site: see there.
    """

    function: Callable[..., Any]
    args: tuple
    kwargs: dict
    named: Callable[..., Any]
    slots: tuple[int, ...]
    outputs: tuple[int, ...]
    stages: tuple[str, ...]
    site: Site

    @property
    def path(self) -> str:
        """Of the module whose code it is."""
        return self.stages[-1].partition("#")[0]


class Program:
    """The calls inside one call of a module, in order.

    Attributes:
      calls: see `Call`.
      values: of the slots, as they were when they came up.
    """

    def __init__(self, frame: str):
        self.frame = frame
        self.calls: list[Call] = []
        self.values: list[Any] = []
        self._slots: dict[int, int] = {}
        self._makers: dict[int, int] = {}  # the first calls that slots come out of
        self._kept: list[Any] = []  # their ids stay theirs
        self._bytes = 0
        self.is_whole = True
        self.writes = False

    def slot(self, tensor: Any) -> int:
        index = self._slots.get(id(tensor))
        if index is None:
            index = self._slots[id(tensor)] = len(self.values)
            self._kept.append(tensor)
            self.values.append(tensor.detach().clone())
            self._bytes += 2 * tensor.numel() * tensor.element_size()
            self.is_whole = self.is_whole and self._bytes <= _MOST_BYTES
        return index

    def add(
        self,
        stages: tuple[str, ...],
        site: Site,
        named: Callable[..., Any],
        func: Callable[..., Any],
        args: tuple,
        kwargs: dict,
    ) -> Any:
        """Records a call and makes it, see `Call`."""
        if not self.is_whole:
            return func(*args, **kwargs)
        given = tensors_in((args, kwargs))
        slots = tuple(map(self.slot, given))
        noted = map_arrays((args, kwargs), lambda _, t: Slot(self.slot(t)), is_tensor)
        versions = [tensor._version for tensor in given]
        output = func(*args, **kwargs)
        found = tensors_in(output)
        name = getattr(func, "__name__", "")
        self.writes = self.writes or versions != [tensor._version for tensor in given]
        if not found and name != "__setitem__":
            return output
        outputs = tuple(map(self.slot, found))
        for slot in outputs:
            self._makers.setdefault(slot, len(self.calls))
        self.calls.append(Call(func, noted[0], noted[1], named, slots, outputs, stages, site))
        return output

    def settled(self, good: set[str]) -> set[int]:
        """The calls of modules inside whose output is known to be right, by their stages."""
        return {
            i
            for i, call in enumerate(self.calls)
            if good.intersection(call.stages[call.stages.index(self.frame) + 1 :])
        }

    def floats(self) -> list[int]:
        """The slots of floats."""
        return [s for s, value in enumerate(self.values) if value.is_floating_point()]

    def is_parameter(self, slot: int) -> bool:
        """Whether it is an array of a module's own."""
        return isinstance(self._kept[slot], import_torch().nn.Parameter)

    def made(self, slot: int) -> int | None:
        """The index of the call that a slot comes out of; None where it comes from outside."""
        return self._makers.get(slot)

    def find(self, array: np.ndarray) -> int | None:
        """The first slot that holds an array."""
        return next(self.holding(array), None)

    def holding(self, array: np.ndarray) -> Iterator[int]:
        """The slots that hold an array, in the order in which they came up."""
        for index, value in enumerate(self.values):
            if tuple(value.shape) == array.shape and value.is_floating_point():
                off = np.max(np.abs(to_numpy(value) - array), initial=0.0)
                if off <= 1e-13 * max(float(np.max(np.abs(array), initial=0.0)), 1e-300):
                    yield index

    def run(
        self,
        target: int,
        fixed: set[int],
        changes: Mapping[int, Apply] | None = None,
        inserts: Mapping[int, Insert] | None = None,
        sources: Mapping[tuple[int, int], int] | None = None,
    ) -> Any:
        """The value of a slot with something changed.

        Args:
          target: the slot.
          fixed: calls that are not made again.
          changes: by index, in the place of calls.
          inserts: by slot, what its value goes through as it comes up.
          sources: by call and slot that it is given, the slot that it is given in its place.

        Returns:
          The tensor; None where the change does not reach it.
        """
        changes, inserts, sources = changes or {}, inserts or {}, sources or {}
        last = self.made(target)
        if last is None:
            return None
        values: dict[int, Any] = {}
        rewired = {index for index, _ in sources}
        for slot, change in inserts.items():
            if self.made(slot) is None or self.made(slot) in fixed:
                values[slot] = change(self.values[slot].clone())

        def value(slot: int) -> Any:
            if slot not in values:
                if not self.writes:
                    return self.values[slot]
                values[slot] = self.values[slot].clone()
            return values[slot]

        for i, call in enumerate(self.calls[: last + 1]):
            changed = i in changes or i in rewired or not inserts.keys().isdisjoint(call.outputs)
            moved = not values.keys().isdisjoint(call.slots)
            if i in fixed or not (changed or moved or self.writes):
                continue
            change = changes.get(i)

            def given(_: str, slot: Slot, i: int = i, change: Any = change) -> Any:
                tensor = value((sources or {}).get((i, slot.index), slot.index))
                return tensor if change is None else tensor.clone()  # which may write into it

            args, kwargs = map_arrays(
                (call.args, call.kwargs),
                given,
                lambda part: isinstance(part, Slot),
            )
            output = (
                call.function(*args, **kwargs)
                if change is None
                else change(call.function, args, kwargs)
            )
            for slot, tensor in zip(call.outputs, tensors_in(output), strict=True):
                values[slot] = inserts[slot](tensor) if slot in inserts else tensor
        return values.get(target)


@dataclasses.dataclass(frozen=True)
class Everywhere:
    """A change of all calls that are alike.

    Attributes:
      fits: whether a call is changed, by its site and its module's path.
      apply: in the place of the call; it has the tensor from elsewhere as a last argument.
      source: whether a call, by its site and path, holds the tensor from elsewhere.
      take: that tensor, from (args, kwargs, output).
      enters: whether a module, by its path, is called with the tensor from elsewhere.
    """

    fits: Callable[[Site, str], bool]
    apply: Callable[[Callable[..., Any], tuple, dict, Any], Any]
    source: Callable[[Site, str], bool] | None = None
    take: Callable[[tuple, dict, Any], Any] | None = None
    enters: Callable[[str], bool] | None = None


@dataclasses.dataclass(frozen=True)
class Live:
    """A module of PyTorch that can be run again.

    Attributes:
      module: as it was given.
      images: see `torch_run.run_torch`.
      settings: its keywords.
      rename: of its modules' paths to the names here.
      rename_arrays: of arrays by name.
      rename_stages: of values by stage.
    """

    module: "torch.nn.Module"
    images: np.ndarray | Inputs
    settings: Mapping[str, Any]
    rename: Callable[[str], str]
    rename_arrays: Callable[[Arrays], Arrays]
    rename_stages: Callable[[Arrays], Arrays]

    def record(self, frame: str, changes: Sequence[Everywhere] = ()) -> Program | None:
        """What it calls in the call of one module, by its stage; None where there is none such."""
        try:
            return self._record(
                frame,
                changes,
                torch_widening(self.module, lambda narrow: None, lambda array, eps: array),
            )
        except Exception:  # as `run_torch` does of a module that insists on narrow types
            return self._record(frame, changes, contextlib.nullcontext())

    def _record(
        self,
        frame: str,
        changes: Sequence[Everywhere],
        wide: contextlib.AbstractContextManager[None],
    ) -> Program | None:
        torch = import_torch()
        program = Program(frame)
        stack = Stack(self.rename)
        changed = _Changes(changes, stack)

        def watch(site: Site, func: Any, args: tuple, kwargs: dict) -> Any:
            made = changed.function(func, site)
            if frame not in stack.stages:
                return made(*args, **kwargs)
            return program.add(stack.stages, site, func, made, args, kwargs)

        is_train = bool(self.settings["train"])
        copied, _, given = prepared(self.module, self.images, torch.float64, train=is_train)
        with torch.no_grad(), no_fast_path(), stack, watching(stack, watch), wide:
            given.map(lambda _, tensor: tensor.clone()).call(copied)
        return program if program.calls and program.is_whole else None

    def run(self, changes: Sequence[Everywhere]) -> TorchRun:
        """Runs it in float64 with changes."""
        torch = import_torch()
        stack = Stack(self.rename)
        changed = _Changes(changes, stack)

        def watch(site: Site, func: Any, args: tuple, kwargs: dict) -> Any:
            return changed.function(func, site)(*args, **kwargs)

        settings = {**self.settings, "optimizer": None}
        with stack, watching(stack, watch):
            return run_torch(self.module, self.images, torch.float64, **settings)

    def sites(self) -> list[tuple[Site, str]]:
        """The calls of a run that may be changed, each with its module's path, in order."""
        program = self.record("")
        return [] if program is None else [(call.site, call.path) for call in program.calls]


class _Changes:
    """Changes of a run, and what they take from elsewhere in it."""

    def __init__(self, changes: Sequence[Everywhere], stack: Stack):
        self.changes, self.stack = changes, stack
        self.taken: dict[int, Any] = {}
        stack.on_entry = self.enter

    def enter(self, path: str, args: tuple) -> tuple:
        """The arguments that a module is called with."""
        for i, change in enumerate(self.changes):
            if change.enters and change.enters(path) and i in self.taken and args:
                args = (self.taken[i], *args[1:])
        return args

    def function(self, func: Callable[..., Any], site: Site) -> Callable[..., Any]:
        """The function as it is to be called at a site."""
        path = self.stack.stages[-1].partition("#")[0]
        sources = [i for i, c in enumerate(self.changes) if c.source and c.source(site, path)]
        fitting = [i for i, c in enumerate(self.changes) if c.fits(site, path)]
        if not sources and not fitting:
            return func

        def changed(*args: Any, **kwargs: Any) -> Any:
            made = func
            for i in fitting:
                change = self.changes[i]
                if change.source is None or i in self.taken:
                    made = functools.partial(_apply, change.apply, made, self.taken.get(i))
            output = made(*args, **kwargs)
            for i in sources:
                take = self.changes[i].take
                assert take is not None
                self.taken[i] = take(args, kwargs, output)
            return output

        changed.__name__ = getattr(func, "__name__", "")
        return changed


def _apply(apply: Any, func: Callable[..., Any], taken: Any, *args: Any, **kwargs: Any) -> Any:
    return apply(func, args, kwargs, taken)


def bound(call: Call) -> dict[str, tuple[str | int, Any]]:
    """The arguments of a call by name: where each stands (a position or a keyword), and what."""
    names = list(_parameters().get(call.named, ()))
    found: dict[str, tuple[str | int, Any]] = {}
    for i, value in enumerate(call.args):
        found[names[i] if i < len(names) else f"{i}"] = (i, value)
    return found | {name: (name, value) for name, value in call.kwargs.items()}


@functools.cache
def _parameters() -> dict[Any, list[str]]:
    """The names of the parameters of all functions that take tensors."""
    found: dict[Any, list[str]] = {}
    for function, like in import_torch().overrides.get_testing_overrides().items():
        with contextlib.suppress(TypeError, ValueError):
            kinds = inspect.signature(like).parameters.values()
            found[function] = [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD]
    return found


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without gradients, and without words of PyTorch's about a trial."""
    with import_torch().no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
