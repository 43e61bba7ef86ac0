"""A loaded model as a function of uint8 images, prepared as in the evaluation of its training."""

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vit_jax.data.augment import make_eval_preprocess
from vit_jax.data.host_crop import evaluation_crop
from vit_jax.data.loader import Batches, eval_batches
from vit_jax.data.sources import ImageSource
from vit_jax.layers.target import tracing_for
from vit_jax.models.base import Preprocessing, VisionModel
from vit_jax.training.mesh import make_mesh, put_batch, replicated
from vit_jax.weights.load import LoadedModel

# OpenCV and Pillow decode outside the GIL; more threads would hold more images in memory.
_MAX_WORKERS = 4


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model over all devices, each of which computes its rows of a batch.

    Attributes:
      loaded: the model.
      mesh: the devices.
      variables: the model's arrays, whole on each device.
    """

    loaded: LoadedModel
    mesh: Mesh
    variables: nnx.State

    @classmethod
    def of(cls, loaded: LoadedModel) -> "Classifier":
        """Places the model on JAX's devices.

        Raises:
          ValueError: nothing states the mean and deviation that its images are normalised with.
        """
        preprocessing_of(loaded)
        mesh = make_mesh(-1, 1)
        variables = nnx.state(loaded.model)
        return cls(loaded, mesh, jax.device_put(variables, replicated(mesh)))

    def logits(self, variables: nnx.State, images: jax.Array) -> jax.Array:
        """Images (B, h, w, C) uint8, which are resized and normalised, to logits; for `jax.jit`."""
        return self._call(variables, images, lambda model, prepared: model(prepared))

    def features(self, variables: nnx.State, images: jax.Array) -> jax.Array:
        """Images as of `logits` to what the head's last layer reads, (B, features)."""
        return self._call(
            variables,
            images,
            lambda model, prepared: model.forward_head(
                model.forward_features(prepared), pre_logits=True
            ),
        )

    def _call(
        self,
        variables: nnx.State,
        images: jax.Array,
        function: Callable[[VisionModel, jax.Array], Any],
    ) -> Any:
        model = self.loaded.model
        preprocessing = preprocessing_of(self.loaded)
        prepare = make_eval_preprocess(
            self.loaded.image_size,
            mean=preprocessing.mean,
            std=preprocessing.std,
            dtype=jnp.promote_types(model.dtype, jnp.float32),
        )
        with tracing_for(self.mesh.devices.flat[0].platform):
            return function(nnx.merge(nnx.graphdef(model), variables), prepare(images))

    @property
    def host_size(self) -> tuple[int, int]:
        """(height, width) at which images of other sizes cross to the devices.

        That of the images that the model was trained on, where they shared one: it was shown them
        resized from there, with as little detail. Else what the model takes.
        """
        return self.loaded.data_size or self.loaded.image_size

    def fit(self, image: np.ndarray) -> np.ndarray:
        """An image (H, W, C) uint8 at `host_size`: resized and cropped as in evaluation."""
        preprocessing = preprocessing_of(self.loaded)
        return evaluation_crop(
            image, *self.host_size, preprocessing.crop_fraction, preprocessing.interpolation
        )

    def batches(self, source: ImageSource, batch_size: int, num_workers: int | None) -> Batches:
        """All images of a source, in order, at the size that they cross to the devices in.

        Those of a set that shares a size go as they are; others as `fit` makes them.

        Args:
          source: of the model's channels.
          batch_size: rounded up to a multiple of the number of devices.
          num_workers: threads that decode; None: by the number of processors.

        Raises:
          ValueError: another number of channels than the model's, or see `eval_batches`.
        """
        channels = self.loaded.model.in_chans
        if source.channels != channels:
            raise ValueError(
                f"the images of {source.name} have {source.channels} channels and the model takes "
                f"{channels}"
            )
        trained_on = self.loaded.data_size
        shape = source.image_shape
        as_it_is = shape is not None and trained_on in (None, shape[:2])
        preprocessing = preprocessing_of(self.loaded)
        workers = min(_MAX_WORKERS, os.cpu_count() or 1) if num_workers is None else num_workers
        return eval_batches(
            source,
            batch_size=-(-batch_size // self.mesh.size) * self.mesh.size,
            num_workers=workers,
            image_size=None if as_it_is else self.host_size,
            crop_fraction=preprocessing.crop_fraction,
            interpolation=preprocessing.interpolation,
        )

    def on_device(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The batch divided between the devices."""
        return put_batch(self.mesh, batch)


def preprocessing_of(loaded: LoadedModel) -> Preprocessing:
    """How the model's images are made ready.

    Raises:
      ValueError: nothing states it.
    """
    if loaded.model.preprocessing is None:
        raise ValueError(
            f"{loaded.source}: nothing states the mean and standard deviation of its "
            f"{loaded.model.in_chans}-channel images: give a work directory of a run, or set "
            "model.preprocessing"
        )
    return loaded.model.preprocessing
