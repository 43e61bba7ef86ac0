"""A module of the caller as the model of a run."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.config import TrainConfig
from vit_jax.data.sources import ImageSource
from vit_jax.layers.stack import PlainLayers
from vit_jax.models.base import Variant, VisionModel
from vit_jax.models.config import DesignConfig, Size
from vit_jax.models.streams import Streams

# Makes a module, called as make(rngs=...); or a module, whose arrays are the initial weights.
OwnModule = Callable[..., nnx.Module] | nnx.Module


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnModelConfig(DesignConfig):
    """The fields of `OwnModel`: what its data and its output say."""

    img_size: Size = 1

    def drop_path_rates(self) -> tuple[float, ...]:
        """None that is known."""
        return ()


class OwnModel(VisionModel[OwnModelConfig]):
    """What the training knows of a module that is none of this package's.

    Args:
      config: of the run's images and of the module's output.
      net: the module, called as `net(images, rngs=rngs)`, or as `net(images)` where it takes no
        rngs. Its attribute `head`, if there is one, is what is no backbone.
    """

    design = "own"
    config_class = OwnModelConfig
    variants: ClassVar[Mapping[str, Variant]] = {}
    stem = ()
    layers_name = "layers"
    position_name = ""
    token_names = ()
    torch_names = ((r"^net\.", ""),)
    prefix_tokens = ()

    def __init__(self, config: OwnModelConfig, net: nnx.Module):
        super().__init__(config)
        self.net = net
        self.heads = ("head",) if hasattr(net, "head") else ()
        self.takes_rngs = "rngs" in inspect.signature(type(net).__call__).parameters

    @property
    def layers(self) -> PlainLayers:
        """None that are known."""
        return PlainLayers([])

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> Any:
        """What the module returns."""
        net: Any = self.net
        return net(images, rngs=rngs) if self.takes_rngs else net(images)

    def _unknown(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError("a module of the caller has no tokens, patches or head")

    embed = token_grid = pixel_filters = patch_positions = position_table = _unknown
    patch_weights = forward_head = build_head = _unknown


def build_own_model(config: OwnModelConfig, module: OwnModule, seed: int) -> OwnModel:
    """The model of a run at its start, in train mode; for `jax.jit`."""
    if isinstance(module, nnx.Module):
        net = nnx.merge(*nnx.split(module))  # the caller's own keeps its arrays
    else:
        net = module(rngs=Streams(seed))
    if not isinstance(net, nnx.Module):
        raise ValueError(f"model: wanted a function that makes an nnx.Module, got {net!r}")
    model = OwnModel(config, net)
    model.train()
    return model


def open_own_model(module: OwnModule, config: TrainConfig, source: ImageSource) -> OwnModel:
    """A module of the caller by its shapes alone.

    Raises:
      ValueError: nothing says how large its images are, it does not take them, or it keeps random
        state of its own.
    """
    side = config.data.image_size
    if side is None and source.image_shape is None:
        raise ValueError(
            "config.data.image_size: wanted the side of the images that model= takes: those of "
            f"{source.name} vary in size"
        )
    size = (side, side) if side else source.image_shape[:2]  # pyright: ignore[reportOptionalSubscript]
    fields = OwnModelConfig(img_size=size, in_chans=source.channels)
    abstract = nnx.eval_shape(lambda: build_own_model(fields, module, config.seed))
    if random := nnx.to_flat_state(nnx.state(abstract, nnx.RngState)):
        place = ".".join(map(str, random[0][0][1:]))
        raise ValueError(
            f"model: {place} is random state that the module keeps, which no resume could repeat: "
            "make it without rngs, and give those of the call, dropout(x, rngs=rngs)"
        )
    floats = [leaf.dtype for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param))]
    if not floats:
        raise ValueError("model: it has no nnx.Param, so nothing to train")
    wide = jnp.result_type(*floats).name
    images = jax.ShapeDtypeStruct((1, *size, source.channels), np.dtype(np.float32))
    outputs = nnx.eval_shape(lambda m, x: m(x, rngs=nnx.Rngs(dropout=0)), abstract, images)
    last = jax.tree.leaves(outputs)[-1]
    fields = dataclasses.replace(
        fields, num_classes=last.shape[-1] if last.ndim > 1 else 0, dtype=wide, param_dtype=wide
    )
    return nnx.eval_shape(lambda: build_own_model(fields, module, config.seed))


def has_statistics(model: nnx.Module) -> bool:
    """Whether the model keeps running statistics, which a step in train mode moves."""
    return bool(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
