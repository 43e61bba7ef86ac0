"""Images as vectors: features of files, those that are near each other, copies."""

import dataclasses
import io
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vit_jax.data.loader import num_eval_batches
from vit_jax.inference.classifier import Classifier
from vit_jax.inference.preprocess import image_files
from vit_jax.models.base import VisionModel
from vit_jax.storage import check_output, write_bytes
from vit_jax.training.state import Arrays
from vit_jax.watching import Watch, unwatched

FORMATS = {".npz": b"PK"}
# Similarities that are held at a time: 64 MiB of float32.
SIMILARITIES = 2**24


@dataclasses.dataclass(frozen=True)
class Embeddings:
    """Images, seen by a model.

    Attributes:
      paths: of the files that could be read; of images in memory their numbers.
      features: (N, D), float32 or wider.
      unread: why others could not be read, by path.
    """

    paths: tuple[str, ...]
    features: np.ndarray
    unread: dict[str, str]


def embed(
    model: VisionModel[Any],
    images: Any,
    batch_size: int = 32,
    num_workers: int | None = None,
) -> Embeddings:
    """Returns the features of images, prepared as in the model's own evaluation.

    A feature is what the head's last layer reads, as in `probe`.

    Args:
      model: of `vit_jax.from_pretrained`.
      images: as of `vit_jax.preprocess`.
      batch_size: images at a time.
      num_workers: threads that decode; None: by the number of processors.

    Raises:
      ValueError: no images; a model without pooling or preprocessing, or of other channels than 1
        and 3.
    """
    source = image_files(model, images)
    batch_size = min(batch_size, len(source))
    features = features_of(Classifier.of(model), source, batch_size, num_workers)[0]
    paths = [source.path(number) or str(number) for number in range(len(source))]
    read = [number for number in range(len(paths)) if number not in source.unreadable]
    unread = {paths[number]: why for number, why in sorted(source.unreadable.items())}
    return Embeddings(tuple(paths[number] for number in read), features[read], unread)


def features_of(
    classifier: Classifier,
    source: Any,
    batch_size: int,
    num_workers: int | None,
    watch: Watch = unwatched,
) -> tuple[np.ndarray, np.ndarray]:
    """Features (N, D) and labels (N,) of all images of a source, in order.

    `watch` goes through the batches; see `vit_jax.watching`.

    Raises:
      ValueError: a model without pooling; see `Classifier.batches`.
    """

    @jax.jit
    def compiled(variables: Arrays, images: jax.Array) -> jax.Array:
        features = classifier.features(variables, images)
        return features.astype(jnp.promote_types(features.dtype, jnp.float32))

    features, labels = [], []
    with classifier.batches(source, batch_size, num_workers) as batches:
        total = num_eval_batches(source, classifier.rounded(batch_size))
        for batch, found in classifier.results(compiled, watch(batches, total, "features")):
            if found.ndim != 2:
                raise ValueError(
                    "this model has global_pool='' and a feature for every token: wanted one for "
                    "an image"
                )
            features.append(found[batch["mask"]])
            labels.append(batch["label"][batch["mask"]])
    return np.concatenate(features), np.concatenate(labels)


def nearest(features: Float[np.ndarray, "n d"], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k nearest of the other features to each, the nearest first.

    Near is a high cosine similarity. A row of zeros is like nothing: its similarity is 0.

    Args:
      features: such as `Embeddings.features`.
      k: neighbours; all others where there are fewer.

    Returns:
      Indices (N, k), int64, and similarities (N, k), in [-1, 1].

    Raises:
      ValueError: k below 1, fewer than two features, or one that is not finite.
    """
    if k < 1 or len(features) < 2:
        raise ValueError(f"wanted k >= 1 of two features or more, got k={k} of {len(features)}")
    if not np.isfinite(features).all():
        raise ValueError("wanted features that are finite numbers")
    k = min(k, len(features) - 1)
    wide = np.asarray(features, np.float64)
    unit = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), np.finfo(float).tiny)
    rows = max(1, SIMILARITIES // len(unit))
    indices, similarities = [], []
    for start in range(0, len(unit), rows):
        found = unit[start : start + rows] @ unit.T
        own = np.arange(len(found))
        found[own, own + start] = -np.inf  # itself
        order = np.argsort(-found, axis=1, kind="stable")[:, :k]
        indices.append(order)
        similarities.append(np.take_along_axis(found, order, axis=1))
    return np.concatenate(indices), np.concatenate(similarities).clip(-1, 1)


def closest_pairs(features: Float[np.ndarray, "n d"], count: int) -> list[tuple[int, int, float]]:
    """The pairs (first, second, similarity) that are most alike, the most first: copies, bursts.

    Each feature is looked at with its `count` nearest, so that none of the pairs is missed.

    Raises:
      ValueError: see `nearest`.
    """
    indices, similarities = nearest(features, count)
    pairs = {
        (min(i, int(j)), max(i, int(j))): float(similarity)
        for i, (others, values) in enumerate(zip(indices, similarities, strict=True))
        for j, similarity in zip(others, values, strict=True)
    }
    ranked = sorted(pairs.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(first, second, similarity) for (first, second), similarity in ranked[:count]]


def save_embeddings(
    embeddings: Embeddings, model: VisionModel[Any], out: str | os.PathLike[str]
) -> None:
    """Writes an .npz: `features` (N, D), `paths` (N,) and `model`, a name. `numpy.load` reads it.

    Raises:
      ValueError: another suffix, or something else lies there.
      OSError: it cannot be written.
    """
    path = pathlib.Path(out)
    check_output(path, FORMATS)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        features=embeddings.features,
        paths=np.array(embeddings.paths, dtype=np.str_),
        model=np.array(model.spec.name),
    )
    write_bytes(path, buffer.getvalue())
