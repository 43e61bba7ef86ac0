"""The layer that reads an image's channels, converted to another number of them.

timm's rule (1.0.31, `adapt_input_conv` of models/_manipulate.py), for its convolutions and for the
Linears over unfolded patches, and the exact cases of T2T's first layer.
"""

import jax.numpy as jnp
import numpy as np

from vit_jax.models.adaptable import PatchWeights


def _channels(array: np.ndarray, patches: PatchWeights) -> np.ndarray:
    """The weight with channels and window as two axes, in float32 or wider, as timm computes."""
    name, shape, axis = patches.name, array.shape, patches.axis
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"wanted {name} in floating point, got {array.dtype}")
    if len(shape) <= axis or not shape[axis] or shape[axis] % patches.window:
        raise ValueError(
            f"{name} of the state dict, {shape}, does not hold channels of {patches.window} "
            f"numbers each along axis {axis}: its windows are not the model's"
        )
    wide = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    return wide.reshape(*shape[:axis], -1, patches.window, *shape[axis + 1 :])


def _convert_normed(
    state: dict[str, np.ndarray], patches: PatchWeights, old: int, new: int
) -> list[str]:
    """Channels of a Linear after a LayerNorm over a whole window: where there is an exact way.

    A window whose channels are equal has the mean and the variance of each of them. So the sum over
    channels can take the norm's gain and shift into the Linear; and copies of all channels take the
    Linear divided by their number.
    """
    if patches.bias is None:  # nothing to take the shift; its scores also depend on the width
        raise ValueError(
            f"{patches.name} of the state dict reads {old} channels after {patches.norm}, which "
            f"is over all channels of a window, and has no bias: it cannot be converted to {new}; "
            f"build the model with in_chans={old} and give it images of {old} channels"
        )
    if new != 1 and new % old:
        raise ValueError(
            f"{patches.name} of the state dict reads {old} channels after {patches.norm}, which "
            f"is over all channels of a window: it can be converted to 1 or a multiple of {old} "
            f"channels, the model has {new}"
        )
    names = (patches.name, patches.bias, f"{patches.norm}.weight", f"{patches.norm}.bias")
    missing = [name for name in names if name not in state]
    if missing:
        return [f"{name}: not in the state dict, no channels converted" for name in missing]
    arrays = [np.asarray(state[name]) for name in names]
    weight, bias, gain, shift = (array.astype(np.float64) for array in arrays)
    if not (
        weight.ndim == 2
        and bias.shape == weight.shape[:1]
        and gain.shape == shift.shape
        and gain.shape == weight.shape[1:]
    ):
        found = ", ".join(f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True))
        raise ValueError(f"these arrays of the state dict do not fit each other: {found}")
    if new == 1:
        bias = bias + weight @ shift
        weight = (weight * gain).reshape(len(weight), old, patches.window).sum(axis=1)
        gain, shift = np.ones(patches.window), np.zeros(patches.window)
        how = "their sum, gain and shift in the Linear after it"
    else:
        copies = new // old
        weight = np.tile(weight, copies) / copies
        gain, shift = np.tile(gain, copies), np.tile(shift, copies)
        how = f"repeated, the Linear after it times {old}/{new}"
    for name, array in zip(names, (weight, bias, gain, shift), strict=True):
        state[name] = array.astype(arrays[0].dtype)
    return [f"{patches.norm}, {patches.name}: {old} channels to {new}, {how}"]


def adapt_channels(state: dict[str, np.ndarray], patches: PatchWeights, new: int) -> list[str]:
    """Converts the patch weights to `new` channels, in place of those in `state`.

    Returns:
      What was done, a line each; also where they fit already, or are missing.

    Raises:
      ValueError: numbers of channels, a shape or a type that no rule fits.
    """
    name, axis = patches.name, patches.axis
    if name not in state:
        return [f"{name}: not in the state dict, no channels to convert"]
    array = np.asarray(state[name])
    channels = _channels(array, patches)
    if patches.is_interleaved:
        count = channels.shape[axis]
        channels = channels.reshape(len(array), patches.window, count).swapaxes(1, 2)
    old = channels.shape[axis]
    if old == new:
        return [f"{name}: {new} channels already, kept"]
    if patches.norm is not None:
        return _convert_normed(state, patches, old, new)
    if new == 1:
        channels, how = channels.sum(axis=axis), "their sum"
    elif old == 3:
        channels = channels.take(np.arange(new) % old, axis=axis) * (old / new)
        how = f"repeated, times {old}/{new}"
    else:
        raise ValueError(
            f"{name} of the state dict has {old} channels and the model {new}: weights are "
            "converted from 3 channels to any number and from any number to 1"
        )
    shape = (*array.shape[:axis], new * patches.window, *array.shape[axis + 1 :])
    if patches.is_interleaved:
        channels = channels.reshape(len(array), new, patches.window).swapaxes(1, 2)
    state[name] = channels.reshape(shape).astype(array.dtype)
    return [f"{name}: {old} channels to {new}, {how}"]
