"""A loaded model as a function of uint8 images, prepared as in the evaluation of its training."""

import collections
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from vit_jax.data.loader import Batch, Batches, eval_batches
from vit_jax.data.sources import ImageSource
from vit_jax.inference.preprocess import host_size, preparation, preprocessing_of
from vit_jax.layers.forms import attention_form, eval_graph
from vit_jax.models.base import VisionModel
from vit_jax.training.mesh import make_mesh, put_batch, replicated
from vit_jax.training.state import Arrays

# OpenCV and Pillow decode outside the GIL; more threads would hold more images in memory.
_MAX_WORKERS = 4
# Batches that may be under way: enough to keep the device busy, few enough to hold.
_IN_FLIGHT = 4


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A model over all devices, each of which computes its rows of a batch.

    Attributes:
      model: is computed in eval mode.
      mesh: the devices.
      variables: the model's arrays, whole on each device.
    """

    model: VisionModel[Any]
    mesh: Mesh
    variables: Arrays

    @classmethod
    def of(cls, model: VisionModel[Any]) -> "Classifier":
        """Places the model on JAX's devices.

        Raises:
          ValueError: nothing states the mean and deviation that its images are normalised with.
        """
        preprocessing_of(model)
        mesh = make_mesh(-1, 1)
        variables = nnx.to_pure_dict(nnx.state(model))
        return cls(model, mesh, jax.device_put(variables, replicated(mesh)))

    def logits(self, variables: Arrays, images: jax.Array) -> jax.Array:
        """Images (B, h, w, C) uint8, which are resized and normalised, to logits; for `jax.jit`."""
        return self._call(variables, images, lambda model, prepared: model(prepared))

    def features(self, variables: Arrays, images: jax.Array) -> jax.Array:
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
        variables: Arrays,
        images: jax.Array,
        function: Callable[[VisionModel, jax.Array], Any],
    ) -> Any:
        prepare = preparation(self.model)
        device = self.mesh.devices.flat[0]
        graph = eval_graph(self.model, device.platform, attention_form(device))
        return function(nnx.merge(graph, variables), prepare(images))

    def batches(self, source: ImageSource, batch_size: int, num_workers: int | None) -> Batches:
        """All images of a source, in order, at the size that they cross to the devices in.

        Those of a set that shares a size go as they are; others as `preprocess.shown` makes them.

        Args:
          source: of the model's channels.
          batch_size: rounded up to a multiple of the number of devices.
          num_workers: threads that decode; None: by the number of processors.

        Raises:
          ValueError: another number of channels than the model's, or see `eval_batches`.
        """
        channels = self.model.in_chans
        if source.channels != channels:
            raise ValueError(
                f"the images of {source.name} have {source.channels} channels and the model takes "
                f"{channels}"
            )
        preprocessing = preprocessing_of(self.model)
        shape = source.image_shape
        as_it_is = shape is not None and preprocessing.resized_from in (None, shape[:2])
        workers = min(_MAX_WORKERS, os.cpu_count() or 1) if num_workers is None else num_workers
        return eval_batches(
            source,
            batch_size=self.rounded(batch_size),
            num_workers=workers,
            image_size=None if as_it_is else host_size(self.model),
            crop_fraction=preprocessing.crop_fraction,
            interpolation=preprocessing.interpolation,
            crop_mode=preprocessing.crop_mode,
        )

    def rounded(self, batch_size: int) -> int:
        """The batch size, up to a multiple of the number of devices."""
        return -(-batch_size // self.mesh.size) * self.mesh.size

    def on_device(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """The batch divided between the devices."""
        return put_batch(self.mesh, batch)

    def results(
        self, function: Callable[[Arrays, jax.Array], Any], batches: Iterable[Batch]
    ) -> Iterator[tuple[Batch, Any]]:
        """Each batch with what a function makes of its images, in order.

        A few batches are sent ahead of the one that is waited for.

        Args:
          function: of `variables` and images as of `logits`; compiled.
          batches: of `batches`.
        """
        under_way: collections.deque[tuple[Batch, Any]] = collections.deque()
        for batch in batches:
            images = self.on_device({"image": batch.pop("image")})["image"]
            under_way.append((batch, function(self.variables, images)))
            if len(under_way) > _IN_FLIGHT:
                sent, found = under_way.popleft()
                yield sent, jax.device_get(found)
        for sent, found in under_way:
            yield sent, jax.device_get(found)
