"""Runs a PyTorch module in float64 throughout, its casts to narrower floats left out.

See `widen`, which is its like in JAX.
"""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

# What narrows without naming a type, and what reads or writes a tensor as it is.
_NARROWING = {"float": "float32", "half": "float16", "bfloat16": "bfloat16"}
_AS_IT_IS = ("__get__", "__set__", "__delete__", "__setitem__", "numpy", "backward")
# Of PyTorch's functions those whose own derivative holds a number that is rounded to float32 even
# in float64, and that number (PyTorch 2.13, aten/src/ATen/native/cpu/Activation.cpp).
ROUNDED_DERIVATIVES = {"hardsigmoid": "1/6"}
# Called with the name of the narrow type.
Note = Callable[[str], None]
Hold = Callable[[np.ndarray, float], np.ndarray]


@contextlib.contextmanager
def torch_widening(module: "torch.nn.Module", note: Note, hold: Hold) -> Iterator[None]:
    """What PyTorch computes in this context is computed in float64 in the place of narrower types.

    So are new tensors that name no type. What runs inside of TorchScript is not reached.

    Args:
      module: what runs. What the files of its classes keep in caches is dropped before and after:
        in transformers they hold tables of coordinates.
      note: called for each operation that would have computed in a narrow type, with its name;
        with a key of `ROUNDED_DERIVATIVES` where that function's exact derivative is taken.
      hold: called with each real tensor that comes in a narrow type, in a wide one, and with the
        epsilon of its own: what is to stand there.
    """
    import torch

    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    _clear_caches(module)
    try:
        with _mode()(note, hold):
            yield
    finally:
        torch.set_default_dtype(default)
        _clear_caches(module)


def _clear_caches(module: "torch.nn.Module") -> None:
    """Empties the caches of functions in the files that the module's classes are from."""
    files = {type(part).__module__ for part in module.modules()} & sys.modules.keys()
    for value in [value for name in files for value in vars(sys.modules[name]).values()]:
        wrapped = [value]
        with contextlib.suppress(ValueError):  # a cell that is empty
            wrapped += [cell.cell_contents for cell in getattr(value, "__closure__", None) or ()]
        for function in wrapped:
            if isinstance(function, functools._lru_cache_wrapper):
                function.cache_clear()


def _exact_hardsigmoid() -> Any:
    """PyTorch's `hardsigmoid` with a derivative of 1/6, to all modes under that name."""
    import torch
    from torch.overrides import handle_torch_function, has_torch_function_unary

    def hardsigmoid(input: torch.Tensor) -> torch.Tensor:
        if has_torch_function_unary(input):
            return handle_torch_function(hardsigmoid, (input,), input)
        ends = torch.nn.functional.hardsigmoid(input.detach())
        return torch.where((input > -3) & (input < 3), (input + 3) / 6, ends)

    return hardsigmoid


def _mode() -> Any:
    import torch
    from torch.overrides import TorchFunctionMode

    exact = {"hardsigmoid": _exact_hardsigmoid()}
    wide: dict[Any, Any] = dict.fromkeys(
        (torch.float16, torch.bfloat16, torch.float32), torch.float64
    )
    wide[torch.complex64] = torch.complex128
    legacy = {
        "torch.HalfTensor": "float16",
        "torch.BFloat16Tensor": "bfloat16",
        "torch.FloatTensor": "float32",
    }

    class Widening(TorchFunctionMode):
        def __init__(self, note: Note, hold: Hold):
            super().__init__()
            self.note, self.hold = note, hold

        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            del types
            name = getattr(func, "__name__", "")
            if name in _NARROWING and args and isinstance(args[0], torch.Tensor):
                self.note(_NARROWING[name])
                return self.widened(args[0])
            writes = name.startswith("__i") or (name.endswith("_") and not name.endswith("__"))
            keeps = writes or name in _AS_IT_IS

            def widened(value: Any) -> Any:
                if isinstance(value, torch.dtype) and value in wide:
                    self.note(str(value).removeprefix("torch."))
                    return wide[value]
                if isinstance(value, str) and value in legacy:
                    self.note(legacy[value])
                    return torch.float64
                if isinstance(value, torch.Tensor) and value.dtype in wide and not keeps:
                    return self.widened(value)
                if type(value) is tuple:
                    return tuple(map(widened, value))
                return list(map(widened, value)) if type(value) is list else value

            args = [widened(value) for value in args]
            kwargs = {key: widened(value) for key, value in (kwargs or {}).items()}
            if name.rstrip("_") in exact and args and args[0].requires_grad:
                self.note(name.rstrip("_"))
                output = exact[name.rstrip("_")](args[0])
                is_in_place = name.endswith("_") or True in (*args[1:], kwargs.get("inplace"))
                return args[0].copy_(output) if is_in_place else output
            return func(*args, **kwargs)

        def widened(self, value: torch.Tensor) -> torch.Tensor:
            with torch._C.DisableTorchFunction():
                if value.dtype not in wide:
                    return value.to(value.dtype if value.is_complex() else torch.float64)
                found = value.to(wide[value.dtype])
                if value.is_complex():
                    return found
                array = found.detach().numpy()
                held = self.hold(array, torch.finfo(value.dtype).eps)
                return found if held is array else found + torch.from_numpy(held - array)

    return Widening
