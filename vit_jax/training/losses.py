"""Losses, one value an example, in float32 or wider."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Logits = jax.Array | tuple[jax.Array, jax.Array]
# Classes (batch,), or of each class its share (batch, classes).
Targets = jax.Array


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


def soft_cross_entropy(
    logits: Float[Array, "batch classes"], targets: Float[Array, "batch classes"]
) -> Float[Array, "batch"]:
    """Cross entropy with a share of the target at each class; the shares of an example sum to 1.

    As `torch.nn.functional.cross_entropy` with probabilities, before its mean.
    """
    return -(targets * jax.nn.log_softmax(wide(logits), axis=-1)).sum(axis=-1)


def cross_entropy(
    logits: Float[Array, "batch classes"], targets: Targets, label_smoothing: float = 0.0
) -> Float[Array, "batch"]:
    """Cross entropy with classes, or with shares of them, which are smooth already.

    Args:
      logits: of one head.
      targets: labels (batch,), or shares (batch, classes) such as `mixing.mix_batch` makes.
      label_smoothing: of labels; shares are taken as they are.
    """
    if targets.ndim == 2:
        return soft_cross_entropy(logits, targets)
    return softmax_cross_entropy(logits, targets, label_smoothing)


def classification_loss(
    logits: Logits, targets: Targets, label_smoothing: float = 0.0
) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
    """Returns the loss of each example and the logits that its prediction is read from.

    The two heads of a distilled model both learn the target: the loss is the average of theirs, the
    prediction that of their average, as in eval mode. `targets` are those of `cross_entropy`.
    """
    if isinstance(logits, tuple):
        first, second = (cross_entropy(head, targets, label_smoothing) for head in logits)
        return (first + second) / 2, mean_of_heads(logits)
    return cross_entropy(logits, targets, label_smoothing), wide(logits)


def mean_of_heads(logits: tuple[jax.Array, jax.Array]) -> Float[Array, "batch classes"]:
    """What a distilled model predicts from, as in eval mode."""
    return (wide(logits[0]) + wide(logits[1])) / 2
