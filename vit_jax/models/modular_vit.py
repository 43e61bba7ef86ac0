"""The modular ViT of seed 001: labml-nn's Vision Transformer, its layers shared or not.

The text is that of labml-nn 0.5.1 (labml_nn/transformers/vit), but for one layer object repeated
where labml copies it: `share_layers`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.checks import check_bool, check_int
from vit_jax.layers.dropout import Dropout
from vit_jax.layers.initializers import normal
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.prenorm_layer import TransformerLayer
from vit_jax.layers.stack import stack_layers
from vit_jax.models.adaptable import PatchWeights
from vit_jax.models.any_size import AnySizeConfig, AnySizeModel
from vit_jax.models.base import Logits, Variant
from vit_jax.models.config import checked
from vit_jax.models.spec import HALF_MEAN, HALF_STD, Preprocessing


class LearnedPositions(nnx.Module):
    """Adds the first rows of a table (max_tokens, 1, D), which starts at zero."""

    def __init__(self, max_tokens: int, dim: int, *, dtype: Dtype, param_dtype: Dtype):
        self.dtype = dtype
        # The source's layout: its tokens are (N, B, D).
        self.positional_encodings = nnx.Param(jnp.zeros((max_tokens, 1, dim), param_dtype))

    def __call__(
        self, tokens: Float[Array, "batch tokens dim"]
    ) -> Float[Array, "batch tokens dim"]:
        positions = self.positional_encodings[: tokens.shape[1]].astype(self.dtype)
        return tokens + positions.swapaxes(0, 1)


class ClassificationHead(nnx.Module):
    """Linear, ReLU, Dropout, Linear; the last is the identity without classes."""

    def __init__(
        self,
        dim: int,
        hidden_dim: int,
        *,
        drop_rate: float,
        dtype: Dtype,
        param_dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        self.dtype, self.param_dtype = dtype, param_dtype
        self.hidden_dim = hidden_dim
        self.linear1 = torch_linear(
            dim, hidden_dim, dtype=dtype, param_dtype=param_dtype, rngs=rngs
        )
        self.dropout = Dropout(drop_rate)
        self.linear2 = nnx.data(None)

    def reset(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the last Linear by a new one."""
        types: dict[str, Any] = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.linear2 = nnx.data(
            torch_linear(self.hidden_dim, num_classes, **types, rngs=rngs) if num_classes else None
        )

    def __call__(
        self,
        x: Float[Array, "batch dim"],
        *,
        pre_logits: bool = False,
        key: Key[Array, ""] | None = None,
    ) -> Float[Array, "batch classes"]:
        x = self.dropout(jax.nn.relu(self.linear1(x)), key)
        return x if pre_logits or self.linear2 is None else self.linear2(x)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModularViTConfig(AnySizeConfig):
    """The fields of `ModularViT`; the common ones: `DesignConfig` to `AnySizeConfig`.

    Defaults are those of labml's CIFAR-10 experiment where the text has none.

    Attributes:
      head_hidden_dim: width of the head's first Linear.
      share_layers: True is the text's code: one layer, with one set of weights, called `depth`
        times. PyTorch names its arrays `depth` times, `state_dict` once. Not with `scan_layers`.
    """

    embed_dim: int = 512
    head_hidden_dim: int = checked(2048, check_int, least=1)
    max_tokens: int = 5000
    share_layers: bool = checked(False, check_bool)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.share_layers and self.scan_layers:
            raise ValueError(
                "scan_layers=True stacks the weights of different layers, and share_layers=True "
                "has one layer: set one of them to False"
            )


class ModularViT(AnySizeModel[ModularViTConfig]):
    """The modular ViT of seed 001: labml-nn's, pre-norm, a ReLU head at the class token.

    The LayerNorm after the last layer takes the class token alone and belongs to the head.
    """

    design = "vit_modular"
    config_class = ModularViTConfig
    # The text normalises nothing: 0..1 becomes -1..1.
    variants: ClassVar[Mapping[str, Variant]] = {
        "vit_modular": Variant({}, Preprocessing(HALF_MEAN, HALF_STD, interpolation="bilinear"))
    }
    stem = ("patch_emb", "cls_token_emb", "pos_emb")
    heads = ("classification.linear2",)
    layers_name = "transformer_layer"
    position_name = "pos_emb.positional_encodings"
    token_names = ("positional_encodings", "cls_token")
    torch_names = (
        (r"^patch_emb\.proj\.", "pacth_emb.conv."),  # so spelt in the text
        (r"\.(query|key|value)\.(weight|bias)$", r".\1.linear.\2"),
    )
    torch_stages: ClassVar[Mapping[str, str]] = {"pacth_emb": "patch_emb"}

    def __init__(self, config: ModularViTConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        embed_dim, types = config.embed_dim, self.types
        self.patch_emb = PatchEmbed(
            self.img_size,
            self.patch_size,
            config.in_chans,
            embed_dim,
            patchify=config.patchify,
            **types,
            rngs=rngs,
        )
        self.cls_token_emb = nnx.Param(
            normal(1.0)(rngs.params(), (1, 1, embed_dim), self.param_dtype)
        )
        self.pos_emb = LearnedPositions(config.max_tokens, embed_dim, **types)
        layers = [
            TransformerLayer(
                embed_dim,
                config.num_heads,
                config.mlp_dim,
                norm_eps=config.norm_eps,
                drop_rate=config.drop_rate,
                attn_drop_rate=config.attention_drop_rate,
                **types,
                rngs=rngs,
            )
            for _ in range(min(config.depth, 1) if config.share_layers else config.depth)
        ]
        if config.share_layers:
            layers *= config.depth
        self.transformer_layer = stack_layers(layers, config.scan_layers)
        self.ln = layer_norm(embed_dim, config.norm_eps, **types, rngs=rngs)
        self.classification = ClassificationHead(
            embed_dim,
            config.head_hidden_dim,
            drop_rate=config.head_drop_rate,
            **types,
            rngs=rngs,
        )
        self.build_head(rngs)

    def build_head(self, rngs: nnx.Rngs) -> None:
        """Sets the last Linear of the head."""
        self.classification.reset(self.num_classes, rngs=rngs)

    def patch_weights(self) -> PatchWeights:
        """The convolution over the patches."""
        return PatchWeights("pacth_emb.conv.weight")  # so spelt in the text

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        return self.patch_emb.proj.kernel[...]

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches of an image of `img_size`: (N, D)."""
        rows, columns = self.token_grid(*self.img_size)
        return self.pos_emb.positional_encodings[1 : 1 + rows * columns, 0]

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first layer, and the key of the layers' dropouts."""
        self.check_images(images)
        patches = self.patch_emb(images.astype(self.dtype))
        batch, _, dim = patches.shape
        class_token = jnp.broadcast_to(self.cls_token_emb[...].astype(self.dtype), (batch, 1, dim))
        tokens = self.pos_emb(jnp.concatenate([class_token, patches], axis=1))
        return tokens, self.dropout_key(rngs)

    def forward_head(
        self,
        tokens: Float[Array, "batch tokens dim"],
        pre_logits: bool = False,
        *,
        rngs: nnx.Rngs | None = None,
    ) -> Logits:
        """Tokens (B, N, D) to logits (B, num_classes), from the class token's LayerNorm.

        With `pre_logits`, the input of the last Linear (B, head_hidden_dim).
        """
        return self.classification(
            self.ln(tokens[:, 0]), pre_logits=pre_logits, key=self.dropout_key(rngs)
        )
