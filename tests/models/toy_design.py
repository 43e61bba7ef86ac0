"""A design that this package does not have, in one file: see `test_toy_design.py`."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import torch
from flax import nnx

from vit_jax.layers.checks import check_int, to_pair
from vit_jax.layers.dropout import drop_path
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.stack import stack_layers
from vit_jax.models.adaptable import PatchWeights, PositionTable
from vit_jax.models.base import Variant, VisionModel
from vit_jax.models.config import PatchesConfig, Size, checked
from vit_jax.models.spec import Preprocessing


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(PatchesConfig):
    """The fields of `Toy`.

    Attributes:
      mix_dim: hidden width of a layer.
    """

    img_size: Size = 8
    patch_size: Size = 4
    in_chans: int = 1
    embed_dim: int = 12
    depth: int = 2
    num_heads: int = 1
    mix_dim: int = checked(10, check_int, least=1)


class ToyLayer(nnx.Module):
    """x + out(relu(hidden(norm(x))))."""

    def __init__(self, dim: int, mix_dim: int, norm_eps: float, **types: Any):
        self.norm = layer_norm(dim, norm_eps, **types)
        self.hidden = torch_linear(dim, mix_dim, **types)
        self.out = torch_linear(mix_dim, dim, **types)

    def __call__(self, x: jax.Array, *, drop_path_rate: Any = 0.0, key: Any = None) -> jax.Array:
        branch = self.out(jax.nn.relu(self.hidden(self.norm(x))))
        return x + drop_path(branch, drop_path_rate, key)


class Toy(VisionModel[ToyConfig]):
    """Patches, positions, layers without attention, the mean of the tokens."""

    design = "toy"
    config_class = ToyConfig
    variants: ClassVar[Mapping[str, Variant]] = {
        "toy_8": Variant({}, Preprocessing((0.5,), (0.5,))),
        "toy_wide_8": Variant({"embed_dim": 20}, Preprocessing((0.5,), (0.5,))),
    }
    stem = ("patches", "positions")
    heads = ("classify",)
    layers_name = "mixers"
    position_name = "places"
    token_names = ("places",)
    torch_names = ((r"^patches\.proj\.", "patches."), (r"^positions$", "places"))
    prefix_tokens = ()

    def __init__(self, config: ToyConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        types: dict[str, Any] = {**self.types, "rngs": rngs}
        size = to_pair("patch_size", config.patch_size)
        self.patches = PatchEmbed(
            self.img_size, size, config.in_chans, config.embed_dim, **types, patchify="conv"
        )
        shape = (1, self.patches.num_patches, config.embed_dim)
        self.positions = nnx.Param(jax.random.normal(rngs.params(), shape, self.param_dtype))
        self.mixers = stack_layers(
            [
                ToyLayer(config.embed_dim, config.mix_dim, config.norm_eps, **types)
                for _ in range(config.depth)
            ],
            config.scan_layers,
        )
        self.build_head(rngs)

    def build_head(self, rngs: nnx.Rngs) -> None:
        self.classify = nnx.data(
            torch_linear(self.config.embed_dim, self.num_classes, **self.types, rngs=rngs)
            if self.num_classes
            else None
        )

    def token_grid(self, height: int, width: int) -> tuple[int, int]:
        self.check_size(height, width)
        return self.patches.grid_size

    def pixel_filters(self) -> jax.Array:
        return self.patches.proj.kernel[...]

    def patch_positions(self) -> jax.Array:
        return self.positions[0]

    def position_table(self) -> PositionTable:
        return PositionTable("places", self.positions.shape[1], self.patches.grid_size, prefix=0)

    def patch_weights(self) -> PatchWeights:
        return PatchWeights("patches.weight")

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        self.check_images(images)
        tokens = self.patches(images.astype(self.dtype)) + self.positions[...].astype(self.dtype)
        return tokens, self.dropout_key(rngs)

    def forward_head(
        self, tokens: jax.Array, pre_logits: bool = False, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        x = tokens.mean(axis=1)
        return x if pre_logits or self.classify is None else self.classify(x)


class TorchToyLayer(torch.nn.Module):
    def __init__(self, dim: int, mix_dim: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(dim, eps=1e-6)
        self.hidden = torch.nn.Linear(dim, mix_dim)
        self.out = torch.nn.Linear(mix_dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.out(torch.relu(self.hidden(self.norm(x))))


class TorchToy(torch.nn.Module):
    """Its source, so to speak."""

    def __init__(self, classes: int = 10, dim: int = 12, mix_dim: int = 10, depth: int = 2):
        super().__init__()
        self.patches = torch.nn.Conv2d(1, dim, 4, stride=4)
        self.places = torch.nn.Parameter(torch.randn(1, 4, dim))
        self.mixers = torch.nn.ModuleList(TorchToyLayer(dim, mix_dim) for _ in range(depth))
        self.classify = torch.nn.Linear(dim, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.patches(images).flatten(2).transpose(1, 2) + self.places
        for layer in self.mixers:
            x = layer(x)
        return self.classify(x.mean(1))
