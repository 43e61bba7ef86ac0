"""What every model of the package is."""

import abc
import dataclasses
import operator
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vit_jax.layers.checks import check_choice, check_int, to_pair
from vit_jax.layers.soft_splits import SoftSplitWindows
from vit_jax.layers.stack import PlainLayers, ScannedLayers, collect_outputs, run_layers
from vit_jax.models.adaptable import BiasTable, PatchWeights, PositionTable
from vit_jax.models.config import DesignConfig
from vit_jax.models.description import describe
from vit_jax.models.dialect import Dialect
from vit_jax.models.spec import ModelSpec, Preprocessing

Logits = jax.Array | tuple[jax.Array, jax.Array]
_LAYOUTS = ("NLC", "NHWC")

Config = TypeVar("Config", bound=DesignConfig)


@dataclasses.dataclass(frozen=True)
class Variant:
    """A registered name of a design: the fields that are not its defaults, and preprocessing."""

    fields: Mapping[str, Any]
    preprocessing: Preprocessing


def _block_numbers(indices: int | Sequence[int] | None, depth: int) -> list[int]:
    """The blocks that `forward_intermediates` is asked for, counted from 0."""
    if indices is None:
        return list(range(depth))
    if not isinstance(indices, Sequence):
        count = check_int("indices", indices, least=1)
        if count > depth:
            raise ValueError(f"indices={count} is the last blocks: this model has {depth}")
        return list(range(depth - count, depth))
    chosen = [check_int("indices", index, least=-depth) for index in indices]
    if any(index >= depth for index in chosen):
        raise ValueError(f"indices must be blocks from {-depth} to {depth - 1}, got {indices!r}")
    return [index % depth for index in chosen]


class VisionModel(nnx.Module, Generic[Config]):
    """An image classifier: `forward_head(forward_features(images))`.

    A subclass is a design, and holds all that is true of it and of no other.

    Train mode is NNX's `deterministic` attribute. A model holds no random state: `forward_features`
    and `forward_head` each draw one key from `rngs` (stream "dropout") for all their dropouts.

    Args:
      config: of the design's `config_class`.

    Attributes:
      spec: what the model is: name, fields, preprocessing, class names, source. Loading and
        `reset_classifier` replace it.
      heads: where its last Linears stand, whose outputs are the classes, as in the state dict.
      prefix_tokens: what the tokens before the patches are, in their order: "class",
        "distillation", "register".

    Of the class:
      design: its name.
      config_class: the dataclass of its fields.
      variants: its registered names.
      stem: attributes whose parameters stand before the layers: patches, tokens, positions.
      before_head: layers that a model may have for its head alone, as in the state dict.
      pretraining_parts: attributes that a model may have for pretraining alone: where it has them
        not, weights may have them.
      head_tokens: names of one token in the state dict: which of them, a further head decides.
      head_fields: that say which of these a model has.
      layers_name: where its stack of layers stands, as in the state dict.
      position_name: the position table in the state dict, or a token where there is none; its last
        axis is `embed_dim` wide.
      token_names: what the names of tokens and position tables contain in the state dict.
      resized_by: fields another value of which resizes weights that are loaded.
      named_by: free fields in which registered names differ, beside their sizes.
      takes_any_size: whether images of other sizes than `img_size` are taken.
      independent: fields that may let the images of a batch depend on each other, and the value
        with which they do not.
      dialects: other libraries' names for its weights.
      timm_names: architectures of timm that are not among `variants`: the registered name of each,
        and the fields in which it differs from that.
      torch_names: (pattern, replacement) pairs for the names of the PyTorch source's state dict
        that do not follow from the attributes: see `vit_jax.weights.state_dict`.
      torch_buffers: last parts of names under which the source's state dict may hold what it
        computes.
      timm_fields: fields that timm's model of the design has once for all.
      torch_stages: modules (or variables of a script) of the source that have no arrays of their
        own, and the module here that does the same.
    """

    design: ClassVar[str]
    config_class: ClassVar[type[DesignConfig]]
    variants: ClassVar[Mapping[str, Variant]]
    stem: ClassVar[tuple[str, ...]]
    layers_name: ClassVar[str]
    position_name: ClassVar[str]
    token_names: ClassVar[tuple[str, ...]]
    heads: tuple[str, ...]
    before_head: ClassVar[tuple[str, ...]] = ()
    pretraining_parts: ClassVar[tuple[str, ...]] = ()
    head_tokens: ClassVar[tuple[str, ...]] = ()
    head_fields: ClassVar[tuple[str, ...]] = ()
    takes_any_size: ClassVar[bool] = False
    resized_by: ClassVar[tuple[str, ...]] = ("img_size", "patch_size")
    named_by: ClassVar[tuple[str, ...]] = ("img_size",)
    independent: ClassVar[Mapping[str, Any]] = {}
    dialects: ClassVar[tuple[Dialect, ...]] = ()
    timm_names: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    torch_names: ClassVar[tuple[tuple[str, str], ...]] = ()
    torch_buffers: ClassVar[tuple[str, ...]] = ()
    timm_fields: ClassVar[Mapping[str, Any]] = {}
    torch_stages: ClassVar[Mapping[str, str]] = {}
    prefix_tokens: tuple[str, ...] = ("class",)

    def __init__(self, config: Config):
        if not isinstance(config, type(self).config_class):
            raise ValueError(
                f"{type(self).__name__} is built from a {type(self).config_class.__name__}, got "
                f"{config!r}"
            )
        self.spec = ModelSpec(type(self).design, config)
        self.dtype, self.param_dtype = jnp.dtype(config.dtype), jnp.dtype(config.param_dtype)
        self.drop_path_rates = config.drop_path_rates()
        self.deterministic = False

    def __repr__(self) -> str:
        """A few lines; `vit_jax.inspect.summary.summarize` counts layer by layer."""
        return describe(self)

    __str__ = __repr__

    @property
    def config(self) -> Config:
        """The design's fields, which `spec` holds."""
        return cast(Config, self.spec.config)

    @property
    def img_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return to_pair("img_size", self.config.img_size)

    @property
    def in_chans(self) -> int:
        """Channels of its images."""
        return self.config.in_chans

    @property
    def num_classes(self) -> int:
        """Width of the logits; 0 means that the head is the identity."""
        return self.config.num_classes

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images that it is given, where its preprocessing says other."""
        preprocessing = self.spec.preprocessing
        return (preprocessing and preprocessing.size) or self.img_size

    @property
    def uses_dropout(self) -> bool:
        """Whether anything drops in train mode."""
        return any((*self.config.drop_rates(), *self.drop_path_rates))

    @property
    def types(self) -> dict[str, Any]:
        """The two types, as the constructors of layers take them."""
        return {"dtype": self.dtype, "param_dtype": self.param_dtype}

    def dropout_key(self, rngs: nnx.Rngs | None) -> jax.Array | None:
        """Returns the key of this call's dropouts; None in eval mode and where nothing drops.

        Raises:
          ValueError: the model would drop, and there are no `rngs` to draw from.
        """
        if self.deterministic or not self.uses_dropout:
            return None
        if not isinstance(rngs, nnx.Rngs) or not {"dropout", "default"} & set(rngs):
            raise ValueError(
                "this model has active dropout in train mode: call "
                'model(images, rngs=nnx.Rngs(...)) with a stream "dropout" or "default", or '
                f"model.eval() first; got rngs={rngs!r}"
            )
        return rngs.dropout()

    def check_images(self, images: jax.Array) -> None:
        """Raises ValueError unless images are (B, H, W, C) floats of this model's size."""
        wanted = f"images {self.wanted_shape()}, channels last"
        if not isinstance(images, jax.Array | np.ndarray):
            raise ValueError(f"wanted {wanted}, a JAX or NumPy array, got {type(images).__name__}")
        shape = tuple(images.shape)
        if len(shape) == 3:
            raise ValueError(f"wanted {wanted}, got rank 3: {shape}; one image is images[None]")
        if len(shape) != 4:
            raise ValueError(f"wanted {wanted}, got rank {len(shape)}: {shape}")
        if shape[1] == self.in_chans and shape[3] != self.in_chans:
            raise ValueError(
                f"wanted {wanted}, got {shape}: these are channels first (NCHW, PyTorch's layout); "
                "use images.transpose(0, 2, 3, 1)"
            )
        if shape[3] != self.in_chans:
            raise ValueError(f"wanted {wanted}, got {shape[3]} channels: {shape}")
        self.check_size(shape[1], shape[2])
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(f"wanted normalised floating-point images, got {images.dtype}")

    def wanted_shape(self) -> str:
        """The shape of its images, in words."""
        return f"(batch, {self.img_size[0]}, {self.img_size[1]}, {self.in_chans})"

    def check_size(self, height: int, width: int) -> None:
        """Raises ValueError unless this model takes images of so many pixels."""
        if (height, width) != self.img_size:
            raise ValueError(
                f"wanted images {self.wanted_shape()}, got {height}x{width} pixels; another size "
                "is the model's field img_size"
            )

    @property
    def num_prefix_tokens(self) -> int:
        """How many tokens stand before the patches."""
        return len(self.prefix_tokens)

    @property
    def num_block_prefix_tokens(self) -> int:
        """How many of them stand before the patches in the outputs of blocks."""
        return self.num_prefix_tokens

    @abc.abstractmethod
    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the patch tokens of images of so many pixels, which it takes."""

    @property
    def num_intermediates(self) -> int:
        """How many outputs `forward_intermediates` has: one a block, or one a stage."""
        return len(self.drop_path_rates)

    def layer_of(self, path: tuple[Any, ...]) -> Any:
        """Which layer a parameter belongs to by its path in the model's state; None: to none.

        What is returned sorts as the layers run.
        """
        stack = tuple(type(self).layers_name.split("."))
        return path[len(stack)] if path[: len(stack)] == stack else None

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of layers."""
        return operator.attrgetter(self.layers_name)(self)

    def head_layers(self) -> dict[str, nnx.Linear | None]:
        """The last Linears by their names; None is the identity."""
        return {name: operator.attrgetter(name)(self) for name in self.heads}

    def is_of_head(self, name: str) -> bool:
        """Whether an array of the state dict belongs to a last Linear."""
        return name.rpartition(".")[0] in self.heads

    @abc.abstractmethod
    def embed(
        self, images: jax.Array, rngs: nnx.Rngs | None
    ) -> tuple[jax.Array, jax.Array | None, *tuple[jax.Array, ...]]:
        """Images to the tokens of the first block, the key of the blocks' dropouts, and context.

        Context is what every block is given beside the tokens: none in most designs.
        """

    def last_norm(self, tokens: jax.Array) -> jax.Array:
        """What follows the last block in `forward_features`: nothing, where a model has no norm."""
        return tokens

    @abc.abstractmethod
    def pixel_filters(self) -> jax.Array:
        """What its first projection weighs the pixels of a window with: (height, width, C, D)."""

    @abc.abstractmethod
    def patch_positions(self) -> jax.Array | None:
        """The learned positions of the patches of its own image size, row by row: (N, D).

        None where they are not learned.
        """

    @abc.abstractmethod
    def position_table(self) -> PositionTable | None:
        """Where its positions stand, and what another image size does to them.

        None where they are computed, in no array of the model, or stand in its blocks.
        """

    def bias_tables(self) -> Sequence[BiasTable]:
        """Its tables of relative position biases, and what another grid does to them."""
        return ()

    @property
    def learned_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns that each learned table of positions or biases is for, by its name."""
        positions = self.position_table()
        if positions is None or positions.grid is None or positions.sinusoid:
            found = {}
        else:
            found = {positions.name: positions.grid}
        return found | {table.name: table.grid for table in self.bias_tables()}

    @abc.abstractmethod
    def patch_weights(self) -> PatchWeights:
        """Where the channels of an image enter."""

    @classmethod
    def fields_told_by(cls, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
        """Fields that the shapes of a state dict tell, whatever the registered name."""
        del shapes
        return {}

    def soft_splits(self, height: int, width: int) -> list[SoftSplitWindows]:
        """The overlapping windows of an image of so many pixels; none where patches do not."""
        del height, width
        return []

    @property
    def batch_slots(self) -> int:
        """Images in a batch, where it holds something for each of them; else 1: any number."""
        return 1

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D): the `prefix_tokens`, then patches row by row, after the last layer and the norm
          that follows it, where the design has one there.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing; a batch that is not
            `batch_slots` where that is above 1.
        """
        return self.last_norm(self.run_blocks(*self.embed(images, rngs)))

    def run_blocks(
        self, tokens: jax.Array, key: jax.Array | None, *context: jax.Array
    ) -> jax.Array:
        """What `embed` returned to the output of the last block."""
        return run_layers(
            self.layers,
            tokens,
            drop_path_rates=self.drop_path_rates,
            key=key,
            remat=self.config.remat,
            context=context,
        )

    def forward_intermediates(
        self,
        images: Float[Array, "batch height width channels"],
        indices: int | Sequence[int] | None = None,
        *,
        norm: bool = False,
        layout: str = "NLC",
        rngs: nnx.Rngs | None = None,
    ) -> list[jax.Array]:
        """Images to the outputs of blocks.

        Args:
          images: (B, H, W, C), floating point, normalised.
          indices: numbers of blocks (in a design of stages, of these) from 0, from the end where
            negative; an int n takes the last n; None takes all. Blocks after the last one asked for
            do not run.
          norm: applies what follows the last block in `forward_features`: a last norm, where the
            design has one there. The last block's output is then that of `forward_features`.
          layout: "NLC", all tokens (B, N, D), those before the patches first
            (`num_prefix_tokens`), or "NHWC", the patch tokens as a map (B, rows, columns, D).
          rngs: needed in train mode where the model drops.

        Returns:
          One array for each index, in the order of the indices. (D differs between the blocks of a
          dense T2T-ViT, whose transitions between stages count as blocks, as in its source.)

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing; no such block or
            layout; a norm whose width is not that of the block.
        """
        check_choice("layout", layout, _LAYOUTS)
        chosen = _block_numbers(indices, self.num_intermediates)
        outputs = self.collect(chosen, *self.embed(images, rngs))
        found = [self.last_norm(outputs[i]) if norm else outputs[i] for i in chosen]
        if layout == "NLC":
            return found
        size = images.shape[1], images.shape[2]
        return [self.as_map(x, i, *size) for i, x in zip(chosen, found, strict=True)]

    def collect(
        self, wanted: Sequence[int], tokens: jax.Array, key: jax.Array | None, *context: jax.Array
    ) -> dict[int, jax.Array]:
        """What `embed` returned to the outputs of the wanted blocks, each (B, N, D)."""
        return collect_outputs(
            self.layers,
            tokens,
            wanted,
            drop_path_rates=self.drop_path_rates,
            key=key,
            remat=self.config.remat,
            context=context,
        )

    def as_map(self, tokens: jax.Array, index: int, height: int, width: int) -> jax.Array:
        """The patches among the tokens (B, N, D) of a block as a map, (B, rows, columns, D)."""
        del index
        grid = self.token_grid(height, width)
        patches = tokens[:, self.num_block_prefix_tokens :]
        return patches.reshape(tokens.shape[0], *grid, tokens.shape[-1])

    @abc.abstractmethod
    def forward_head(
        self, tokens: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes), or with `pre_logits` to the head's input."""

    @abc.abstractmethod
    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the last Linears, new ones of `num_classes`; none where that is 0."""

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the last Linears by new ones; the classes are then unknown.

        Args:
          num_classes: width of the logits; 0 makes the last Linear the identity.
          rngs: stream "params".
        """
        config = dataclasses.replace(self.config, num_classes=num_classes)
        self.spec = dataclasses.replace(self.spec, target=None, config=config, class_names=None)
        self.build_head(rngs)

    def __call__(self, images: jax.Array, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Classifies images.

        Args:
          images: (B, H, W, C), floating point, normalised.
          rngs: needed in train mode where the model drops; its stream is "dropout".

        Returns:
          Logits (B, num_classes); see `forward_head` for what a model may return beside.

        Raises:
          ValueError: images of another layout, size or type; `rngs` missing.
        """
        return self.forward_head(self.forward_features(images, rngs=rngs), rngs=rngs)
