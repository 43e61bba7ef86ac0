"""The modular ViT of seed 001: labml-nn's Vision Transformer, its layers shared or not.

The text is that of labml-nn 0.5.1 (labml_nn/transformers/vit), but for one layer object repeated
where labml copies it: `share_layers`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype
from jaxtyping import Array, Float, Key

from vit_jax.layers.checks import check_bool, check_int
from vit_jax.layers.dropout import Dropout, drop_path_rates
from vit_jax.layers.initializers import normal
from vit_jax.layers.linear import torch_linear
from vit_jax.layers.norm import layer_norm
from vit_jax.layers.patch_embed import PatchEmbed
from vit_jax.layers.prenorm_layer import TransformerLayer
from vit_jax.layers.stack import PlainLayers, ScannedLayers, run_layers, stack_layers
from vit_jax.models.any_size import AnySizeModel
from vit_jax.models.base import Logits


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


class ModularViT(AnySizeModel):
    """The modular ViT of seed 001: labml-nn's, pre-norm, a ReLU head at the class token.

    Defaults are those of labml's CIFAR-10 experiment where the text has none.

    Args:
      img_size: pixels, one number or (height, width); images of any other whole number of patches
        are taken too, up to `max_tokens`.
      patch_size: pixels, one number or (height, width).
      in_chans: channels of the images.
      num_classes: width of the logits; 0 makes the last Linear the identity.
      embed_dim: width of a token.
      num_heads: a divisor of it.
      depth: calls of a layer.
      mlp_dim: hidden width of the feed-forward.
      head_hidden_dim: of the head.
      max_tokens: rows of the position table; the class token takes the first.
      share_layers: True is the text's code: one layer, with one set of weights, called `depth`
        times. PyTorch names its arrays `depth` times, `state_dict` once.
      norm_eps: epsilon of every LayerNorm.
      drop_rate: dropout after the attention, inside the feed-forward and after it.
      attn_drop_rate: dropout on the attention weights; None means drop_rate, as labml's experiment
        has it.
      drop_path_rate: stochastic depth of the last layer; linear from 0 at the first (the source has
        none).
      head_drop_rate: dropout before the last Linear (the source has none).
      patchify: "conv" or "unfold" (im2col); the same numbers.
      remat: "none", "blocks" or "dots": see `run_layers`.
      scan_layers: keeps the layers stacked and scans over them; not with share_layers.
      dtype: of the computation.
      param_dtype: of the parameters.

    Raises:
      ValueError: a field that does not fit, by name.
    """

    stem = ("patch_emb", "cls_token_emb", "pos_emb")
    torch_names = (
        (r"^patch_emb\.proj\.", "pacth_emb.conv."),  # so spelt in the text
        (r"\.(query|key|value)\.(weight|bias)$", r".\1.linear.\2"),
    )
    torch_stages: ClassVar[Mapping[str, str]] = {"pacth_emb": "patch_emb"}

    def __init__(
        self,
        *,
        img_size: int | Sequence[int] = 32,
        patch_size: int | Sequence[int] = 4,
        in_chans: int = 3,
        num_classes: int = 10,
        embed_dim: int = 512,
        depth: int = 6,
        num_heads: int = 8,
        mlp_dim: int = 2048,
        head_hidden_dim: int = 2048,
        max_tokens: int = 5000,
        share_layers: bool = False,
        norm_eps: float = 1e-5,
        drop_rate: float = 0.1,
        attn_drop_rate: float | None = None,
        drop_path_rate: float = 0.0,
        head_drop_rate: float = 0.0,
        patchify: str = "conv",
        remat: str = "none",
        scan_layers: bool = False,
        dtype: Dtype | str = jnp.float32,
        param_dtype: Dtype | str = jnp.float32,
        rngs: nnx.Rngs,
    ):
        attn_drop_rate = drop_rate if attn_drop_rate is None else attn_drop_rate
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            max_tokens=max_tokens,
            in_chans=in_chans,
            num_classes=num_classes,
            embed_dim=embed_dim,
            num_heads=num_heads,
            norm_eps=norm_eps,
            remat=remat,
            scan_layers=scan_layers,
            drop_rates={
                "drop_rate": drop_rate,
                "attn_drop_rate": attn_drop_rate,
                "head_drop_rate": head_drop_rate,
            },
            drop_path_rates=drop_path_rates(drop_path_rate, depth),
            dtype=dtype,
            param_dtype=param_dtype,
        )
        if check_bool("share_layers", share_layers) and self.scan_layers:
            raise ValueError(
                "scan_layers=True stacks the weights of different layers, and share_layers=True "
                "has one layer: set one of them to False"
            )
        types = self.types
        self.patch_emb = PatchEmbed(
            self.img_size,
            self.patch_size,
            self.in_chans,
            self.embed_dim,
            patchify=patchify,
            **types,
            rngs=rngs,
        )
        self.cls_token_emb = nnx.Param(
            normal(1.0)(rngs.params(), (1, 1, self.embed_dim), self.param_dtype)
        )
        self.pos_emb = LearnedPositions(self.max_tokens, self.embed_dim, **types)
        layers = [
            TransformerLayer(
                self.embed_dim,
                self.num_heads,
                check_int("mlp_dim", mlp_dim, least=1),
                norm_eps=self.norm_eps,
                drop_rate=drop_rate,
                attn_drop_rate=attn_drop_rate,
                **types,
                rngs=rngs,
            )
            for _ in range(min(depth, 1) if share_layers else depth)
        ]
        if share_layers:
            layers *= depth
        self.transformer_layer = stack_layers(layers, self.scan_layers)
        self.ln = layer_norm(self.embed_dim, self.norm_eps, **types, rngs=rngs)
        self.classification = ClassificationHead(
            self.embed_dim,
            check_int("head_hidden_dim", head_hidden_dim, least=1),
            drop_rate=head_drop_rate,
            **types,
            rngs=rngs,
        )
        self.reset_classifier(num_classes, rngs=rngs)

    def reset_classifier(self, num_classes: int, *, rngs: nnx.Rngs) -> None:
        """Replaces the last Linear of the head by a new one; 0 classes make it the identity."""
        self.num_classes = check_int("num_classes", num_classes, least=0)
        self.classification.reset(self.num_classes, rngs=rngs)

    def pixel_filters(self) -> jax.Array:
        """The projection of the patches: (height, width, C, D)."""
        return self.patch_emb.proj.kernel[...]

    def patch_positions(self) -> jax.Array:
        """The learned positions of the patches of an image of `img_size`: (N, D)."""
        rows, columns = self.token_grid(*self.img_size)
        return self.pos_emb.positional_encodings[1 : 1 + rows * columns, 0]

    @property
    def layers(self) -> PlainLayers | ScannedLayers:
        """The stack of layers; with `share_layers` one, `depth` times."""
        return self.transformer_layer

    def embed(self, images: jax.Array, rngs: nnx.Rngs | None) -> tuple[jax.Array, jax.Array | None]:
        """Images to the tokens of the first layer, and the key of the layers' dropouts."""
        self.check_images(images)
        patches = self.patch_emb(images.astype(self.dtype))
        batch, _, dim = patches.shape
        class_token = jnp.broadcast_to(self.cls_token_emb[...].astype(self.dtype), (batch, 1, dim))
        tokens = self.pos_emb(jnp.concatenate([class_token, patches], axis=1))
        return tokens, self.dropout_key(rngs)

    def forward_features(
        self, images: Float[Array, "batch height width channels"], *, rngs: nnx.Rngs | None = None
    ) -> Float[Array, "batch tokens dim"]:
        """Images to tokens.

        Args:
          images: (B, H, W, C), floating point, normalised, of any whole number of patches that
            `max_tokens` holds.
          rngs: needed in train mode where the model drops.

        Returns:
          (B, N, D): the class token, then patches row by row, after the last layer. The LayerNorm,
          which takes the class token alone, belongs to the head.

        Raises:
          ValueError: images of another layout or type, or that `max_tokens` does not hold; `rngs`
            missing.
        """
        x, key = self.embed(images, rngs)
        return run_layers(
            self.transformer_layer,
            x,
            drop_path_rates=self.drop_path_rates,
            key=key,
            remat=self.remat,
        )

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
