"""What a model's features are worth: images to features, and classes told from them.

A weighted vote of nearest neighbours, as DINO's (Caron et al. 2021, 2104.14294, section 4.1), and
multinomial logistic regression, the linear probe, both on features that stay as they are.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from vit_jax.data.sources import ImageSource
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.embed import SIMILARITIES, features_of
from vit_jax.models.base import VisionModel
from vit_jax.watching import Watch, unwatched


@dataclasses.dataclass(frozen=True)
class Features:
    """A labelled set, seen by a model.

    Attributes:
      source: the set.
      features: (N, D), float32 or wider.
      labels: (N,) class indices of the set.
      class_names: of the set.
    """

    source: str
    features: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]


def extract_features(
    model: VisionModel[Any],
    source: ImageSource,
    batch_size: int = 256,
    num_workers: int | None = None,
    watch: Watch = unwatched,
) -> Features:
    """Returns the features of all images of a set, prepared as in the model's own evaluation.

    A feature is what the head's last layer reads, `forward_head(..., pre_logits=True)`: the class
    token, the pooled patches, or of a head of several layers the last hidden one.

    Args:
      model: of `vit_jax.from_pretrained`.
      source: of `vit_jax.data`, such as `open_splits(...).test`.
      batch_size: images at a time; num_workers: threads that decode, None: by the processors.
      watch: goes through the batches; see `vit_jax.watching`.

    Raises:
      ValueError: labels that are no classes, channels that do not fit, a model without pooling or
        preprocessing, an image that cannot be read.
    """
    if source.label_shape or source.label_dtype.kind != "i":
        raise ValueError(
            f"the labels of {source.name} are {source.label_dtype} of shape {source.label_shape}: "
            "wanted classes, one an image"
        )
    features, labels = features_of(Classifier.of(model), source, batch_size, num_workers, watch)
    return Features(source.name, features, labels, source.class_names)


def knn_classify(
    train_features: Float[np.ndarray, "train features"],
    train_labels: Int[np.ndarray, " train"],
    features: Float[np.ndarray, "images features"],
    *,
    num_classes: int,
    k: int = 20,
    temperature: float = 0.07,
) -> Float[np.ndarray, "images classes"]:
    """Returns the votes of each image's k nearest neighbours by class.

    Near is a high cosine similarity s, and a neighbour's vote weighs exp(s / temperature). Few
    images are compared at a time, so that memory stays bounded whatever the sizes.

    Args:
      train_features, train_labels: the neighbours: N features and their classes.
      features: of the images to classify.
      k: neighbours; of equally near ones the first.
      temperature: above 0; DINO's is 0.07.

    Returns:
      (images, num_classes), of rows that sum to one.

    Raises:
      ValueError: k is not from 1 to N, or temperature not above 0.
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k must be from 1 to the {len(train_features)} neighbours, got {k}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    bank, labels = _unit_length(jnp.asarray(train_features)), jnp.asarray(train_labels)

    @jax.jit
    def votes(bank: jax.Array, labels: jax.Array, queries: jax.Array) -> jax.Array:
        similarity = jnp.matmul(_unit_length(queries), bank.T, precision="highest")
        nearest, which = jax.lax.top_k(similarity, k)  # (rows, k)
        weights = jax.nn.softmax(nearest / temperature, axis=-1)
        voted = jax.nn.one_hot(labels[which], num_classes, dtype=weights.dtype)
        return jnp.einsum("nk,nkc->nc", weights, voted, precision="highest")

    rows = max(1, min(len(features), SIMILARITIES // max(len(bank), k * num_classes)))
    found = []
    for start in range(0, len(features), rows):
        chunk = features[start : start + rows]
        padded = np.pad(chunk, ((0, rows - len(chunk)), (0, 0)))  # one shape, one compilation
        found.append(np.asarray(votes(bank, labels, jnp.asarray(padded)))[: len(chunk)])
    return np.concatenate(found)


def _unit_length(features: Float[Array, "n d"]) -> Float[Array, "n d"]:
    length = jnp.linalg.norm(features, axis=-1, keepdims=True)
    return features / jnp.maximum(length, jnp.finfo(features.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
    """A linear layer over standardised features.

    Attributes:
      mean, std: (D,) of the training features; a feature that does not vary has std 1.
      kernel: (D, classes); bias: (classes,).
      steps: of L-BFGS.
      gradient_norm: of the objective where they ended.
    """

    mean: np.ndarray
    std: np.ndarray
    kernel: np.ndarray
    bias: np.ndarray
    steps: int
    gradient_norm: float

    def logits(self, features: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n classes"]:
        """Features to logits."""
        return (features - self.mean) / self.std @ self.kernel + self.bias


def linear_probe(
    features: Float[np.ndarray, "n d"],
    labels: Int[np.ndarray, " n"],
    *,
    num_classes: int,
    l2: float = 1e-3,
    max_steps: int = 500,
    tolerance: float = 1e-5,
) -> LinearProbe:
    """Fits multinomial logistic regression by L-BFGS, from zero: nothing in it is random.

    The objective, which is convex, is the mean cross entropy plus l2 / 2 times the squares of the
    kernel, the bias left out: scikit-learn's `LogisticRegression(C=1 / (l2 * n))` on standardised
    features.

    Args:
      features, labels: to fit.
      l2: weight of the penalty, at least 0.
      max_steps: of L-BFGS at most; tolerance: the gradient's norm at which it ends.

    Raises:
      ValueError: a negative l2.
    """
    if not l2 >= 0:
        raise ValueError(f"l2 must be at least 0, got {l2!r}")
    mean, std = features.mean(axis=0), features.std(axis=0)
    std = np.where(std > 0, std, 1).astype(features.dtype)
    inputs, targets = jnp.asarray((features - mean) / std), jnp.asarray(labels)
    zeros = (
        jnp.zeros((features.shape[1], num_classes), inputs.dtype),
        jnp.zeros(num_classes, inputs.dtype),
    )
    fitted, steps, norm = _minimise(zeros, inputs, targets, l2, max_steps, tolerance)
    kernel, bias = map(np.asarray, fitted)
    return LinearProbe(mean, std, kernel, bias, int(steps), float(norm))


@functools.partial(jax.jit, static_argnums=4)
def _minimise(params, inputs, targets, l2, max_steps, tolerance):
    """The parameters, the steps taken and the last gradient's norm."""
    optimizer = optax.lbfgs()

    def objective(params):
        kernel, bias = params
        logits = jnp.matmul(inputs, kernel, precision="highest") + bias
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()
        return entropy + 0.5 * l2 * jnp.square(kernel).sum()

    evaluate = optax.value_and_grad_from_state(objective)

    def go_on(carry):
        _, state, step, norm = carry
        del state
        return (step < max_steps) & (norm > tolerance)

    def advance(carry):
        params, state, step, _ = carry
        value, grads = evaluate(params, state=state)
        updates, state = optimizer.update(
            grads, state, params, value=value, grad=grads, value_fn=objective
        )
        return optax.apply_updates(params, updates), state, step + 1, optax.tree.norm(grads)

    start = (params, optimizer.init(params), jnp.asarray(0), jnp.asarray(jnp.inf, inputs.dtype))
    params, _, steps, norm = jax.lax.while_loop(go_on, advance, start)
    return params, steps, norm


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """How well a method told the classes of a test set.

    Attributes:
      method: "knn" or "linear".
      top1: share of the test images that were told right.
      num_train, num_test: images; num_features: width of a feature.
      predictions: (num_test,) class indices.
    """

    method: str
    top1: float
    num_train: int
    num_test: int
    num_features: int
    predictions: np.ndarray


def probe(
    train: Features,
    test: Features,
    method: str,
    *,
    k: int = 20,
    temperature: float = 0.07,
    l2: float = 1e-3,
) -> ProbeResult:
    """Tells the classes of `test` from `train`, both of `extract_features`.

    Args:
      method: "knn" (`knn_classify`, with `k` and `temperature`) or "linear" (`linear_probe`, with
        `l2`).

    Raises:
      ValueError: an unknown method, sets of other classes, or a number that does not fit.
    """
    if train.class_names != test.class_names:
        raise ValueError(f"{train.source} and {test.source} are not of the same classes")
    classes = len(train.class_names)
    if method == "knn":
        scores = knn_classify(
            train.features,
            train.labels,
            test.features,
            num_classes=classes,
            k=k,
            temperature=temperature,
        )
    elif method == "linear":
        fitted = linear_probe(train.features, train.labels, num_classes=classes, l2=l2)
        scores = fitted.logits(test.features)
    else:
        raise ValueError(f"method must be knn or linear, got {method!r}")
    predictions = scores.argmax(axis=-1)
    return ProbeResult(
        method,
        float((predictions == test.labels).mean()),
        len(train.labels),
        len(test.labels),
        train.features.shape[1],
        predictions,
    )
