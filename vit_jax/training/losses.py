"""Losses, one value an example, in float32 or wider."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vit_jax.training.mixing import smooth_one_hot

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
    logits: Float[Array, "batch classes"],
    targets: Targets,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Float[Array, "batch"]:
    """Cross entropy with classes, or with shares of them, which are smooth already.

    Args:
      logits: of one head.
      targets: labels (batch,), or shares (batch, classes) such as `mixing.mix_batch` makes.
      label_smoothing: of labels; shares are taken as they are.
      class_weights: what the term of each class is multiplied with, as `weight=` of torch's,
        before its mean; None: 1.
    """
    if class_weights is not None:
        if targets.ndim == 1:
            dtype = wide(logits).dtype
            targets = smooth_one_hot(targets, logits.shape[-1], label_smoothing, dtype)
        return soft_cross_entropy(logits, targets * jnp.asarray(class_weights, targets.dtype))
    if targets.ndim == 2:
        return soft_cross_entropy(logits, targets)
    return softmax_cross_entropy(logits, targets, label_smoothing)


def binary_cross_entropy(
    logits: Float[Array, "batch labels"],
    targets: Float[Array, "batch labels"],
    positive_weights: Sequence[float] | None = None,
) -> Float[Array, "batch"]:
    """The mean over the labels of -w y log p - (1 - y) log(1 - p), p the sigmoid of the logit.

    As `torch.nn.functional.binary_cross_entropy_with_logits(..., pos_weight=w)`, before its mean
    over the batch; without `positive_weights` w is 1.
    """
    logits = wide(logits)
    targets = targets.astype(logits.dtype)
    weights = 1.0 if positive_weights is None else jnp.asarray(positive_weights, logits.dtype)
    there, away = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(weights * targets * there + (1 - targets) * away).mean(axis=-1)


def classification_loss(
    logits: Logits,
    targets: Targets,
    label_smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
    """Returns the loss of each example and the logits that its prediction is read from.

    The two heads of a distilled model both learn the target: the loss is the average of theirs, the
    prediction that of their average, as in eval mode. `targets` are those of `cross_entropy`.
    """
    return of_heads(
        lambda head: cross_entropy(head, targets, label_smoothing, class_weights), logits
    )


def of_heads(
    loss: Callable[[jax.Array], jax.Array], outputs: Logits
) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
    """The loss of a model's output and what its prediction is read from; of two heads the means."""
    if isinstance(outputs, tuple):
        first, second = map(loss, outputs)
        return (first + second) / 2, mean_of_heads(outputs)
    return loss(outputs), wide(outputs)


def mean_of_heads(logits: tuple[jax.Array, jax.Array]) -> Float[Array, "batch classes"]:
    """What a distilled model predicts from, as in eval mode."""
    return (wide(logits[0]) + wide(logits[1])) / 2
