"""The calls inside a traced model, and which of them each equation of the trace belongs to."""

import dataclasses
import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
from flax import nnx
from jax.extend import core

from vit_jax.inspect.recorder import Recorder
from vit_jax.layers.variables import Frozen
from vit_jax.models.base import VisionModel
from vit_jax.weights.state_dict import names_by_path

_SCOPE = re.compile(r"layer:(\d+)")


@dataclasses.dataclass
class LayerCall:
    """One call of a module.

    Attributes:
      name: PyTorch's path of the module; `name#1` at its second call; "" is the model itself.
      type: its class.
      owner: the number of the call that it is part of; None for the model itself.
      output_shape: of what it returned, the first of several.
    """

    name: str
    type: str
    owner: int | None
    output_shape: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class HeldArray:
    """A parameter or a frozen table, once.

    Attributes:
      name: its name in `vit_jax.state_dict`.
      owner: the number of the inner-most call whose module holds it: the first one's.
    """

    name: str
    owner: int
    shape: tuple[int, ...]
    size: int
    itemsize: int
    is_trainable: bool


class LayerCalls(Recorder):
    """Runs a model under a trace and numbers its calls: equations carry the number.

    A run forgets the one before; the numbers are the same each time.

    Attributes:
      calls: in their order, a call before those inside it.
      arrays: in the order of the model's state.
    """

    def __init__(self) -> None:
        super().__init__(lambda event, value: None)
        self.calls: list[LayerCall] = []
        self.arrays: list[HeldArray] = []
        self._open: list[int] = []
        self._first: dict[int, int] = {}

    def run(self, model: VisionModel, images: jax.Array) -> Any:
        """What the model, a copy by `inspect.recorder.plain`, makes of the images in eval mode."""
        model.eval()
        self.calls, self._first, self._calls = [], {}, {}
        output = self.watch(model)(images)
        owners = dict(_owners(model, self._first, 0))
        variables = nnx.to_flat_state(nnx.state(model, (nnx.Param, Frozen)))
        names = names_by_path(model)
        self.arrays = [
            HeldArray(
                names[path][0],
                owners[id(variable)],
                tuple(variable.shape),
                variable.size,
                variable.dtype.itemsize,
                isinstance(variable, nnx.Param),
            )
            for path, variable in variables
        ]
        return output

    def call(self, module: nnx.Module, function: Callable[..., Any], args: tuple, kwargs: dict):
        number, again = len(self.calls), self._calls.get(id(module), 0)
        name = self._paths[id(module)] + (f"#{again}" if again else "")
        owner = self._open[-1] if self._open else None
        call = LayerCall(name, type(module).__name__, owner)
        self.calls.append(call)
        self._first.setdefault(id(module), number)
        self._open.append(number)
        try:
            with jax.named_scope(f"layer:{number}"):
                output = super().call(module, function, args, kwargs)
        finally:
            self._open.pop()
        call.output_shape = tuple(jax.tree.leaves(output)[0].shape)
        return output


def call_of(equation: core.JaxprEqn) -> int:
    """The number of the inner-most call that an equation of a trace was made in."""
    numbers = _SCOPE.findall(str(equation.source_info.name_stack))
    return int(numbers[-1]) if numbers else 0


def _owners(node: nnx.Module, first: dict[int, int], owner: int) -> Iterable[tuple[int, int]]:
    """(id of a variable, number of the call that holds it), the first holder last."""
    owner = first.get(id(node), owner)
    for _, child in reversed(list(nnx.iter_children(node))):
        if isinstance(child, nnx.Variable):
            yield id(child), owner
        elif isinstance(child, nnx.Module):
            yield from _owners(child, first, owner)
