"""Losses, one value an example, in float32 or wider."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = jax.Array | tuple[jax.Array, jax.Array]


def wide(logits: jax.Array) -> jax.Array:
    """Logits in float32 or wider."""
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))


def softmax_cross_entropy(
    logits: Float[Array, "batch classes"], labels: Int[Array, "batch"], label_smoothing: float = 0.0
) -> Float[Array, "batch"]:
    """Cross entropy with the target 1 - s + s/K at the label and s/K elsewhere.

    As `torch.nn.functional.cross_entropy(..., label_smoothing=s)`, before its mean.
    """
    log_probs = jax.nn.log_softmax(wide(logits), axis=-1)
    at_label = jnp.take_along_axis(log_probs, labels[:, None], axis=-1)[:, 0]
    if label_smoothing == 0.0:
        return -at_label
    return -(1.0 - label_smoothing) * at_label - label_smoothing * log_probs.mean(axis=-1)


def classification_loss(
    logits: Logits, labels: Int[Array, "batch"], label_smoothing: float = 0.0
) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
    """Returns the loss of each example and the logits that its prediction is read from.

    The two heads of a distilled model both learn the label: the loss is the average of theirs, the
    prediction that of their average, as in eval mode.
    """
    if isinstance(logits, tuple):
        first, second = (softmax_cross_entropy(head, labels, label_smoothing) for head in logits)
        return (first + second) / 2, (wide(logits[0]) + wide(logits[1])) / 2
    return softmax_cross_entropy(logits, labels, label_smoothing), wide(logits)
