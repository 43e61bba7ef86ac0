"""Variable types of the package."""

from flax import nnx


class Frozen(nnx.Variable):
    """An array that belongs to the model but is never trained.

    Deliberately not a subclass of `nnx.Param`, whose filter would take it too: a frozen array is in
    the state dict and in checkpoints and follows `param_dtype`, but has no gradient, no optimizer
    state and no weight decay.
    """


def freeze(module: nnx.Module) -> None:
    """Makes all parameters inside a module `Frozen`, in place: of a part that no output depends on.

    It is kept for the files that hold it, and an optimizer leaves it alone, as PyTorch's leave what
    has no gradient.
    """
    for _, part in list(nnx.iter_modules(module)):
        for name, value in list(vars(part).items()):
            if isinstance(value, nnx.Param):
                setattr(part, name, Frozen(value.get_value()))
