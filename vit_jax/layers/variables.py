"""Variable types of the package."""

from flax import nnx


class Frozen(nnx.Variable):
    """An array that belongs to the model but is never trained.

    Deliberately not a subclass of `nnx.Param`, whose filter would take it too: a frozen array is in
    the state dict and in checkpoints and follows `param_dtype`, but has no gradient, no optimizer
    state and no weight decay.
    """
