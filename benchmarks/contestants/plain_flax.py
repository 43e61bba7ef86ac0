"""A Vision Transformer as one writes it from the Flax documentation: `nnx.MultiHeadAttention`,
`nnx.Linear`, `nnx.LayerNorm`, `nnx.Optimizer` and `nnx.jit`, nothing tuned."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.contestants import CannotCompute, Workload
from vit_jax.models.description import num_parameters
from vit_jax.models.registry import abstract_model, model_fields


class Block(nnx.Module):
    """Pre-norm, as timm's; with `post_norm` in the order of the 72x72 classifier."""

    def __init__(
        self, dim: int, heads: int, hidden: int, rate: float, post_norm: bool, **types: Any
    ):
        self.norm1 = nnx.LayerNorm(dim, **types)
        self.attention = nnx.MultiHeadAttention(heads, dim, decode=False, **types)
        self.norm2 = nnx.LayerNorm(dim, **types)
        self.fc1 = nnx.Linear(dim, hidden, **types)
        self.fc2 = nnx.Linear(hidden, dim, **types)
        self.dropout = nnx.Dropout(rate, rngs=types["rngs"])
        self.norm3 = nnx.LayerNorm(dim, **types) if post_norm else None

    def mlp(self, x: jax.Array) -> jax.Array:
        x = self.fc2(self.dropout(nnx.gelu(self.fc1(x), approximate=False)))
        # The classifier of seed 003 has its activation after every Linear.
        return self.dropout(x if self.norm3 is None else nnx.gelu(x, approximate=False))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.dropout(self.attention(self.norm1(x)))
        if self.norm3 is None:
            return x + self.mlp(self.norm2(x))
        x = self.norm2(x)
        return self.norm3(x + self.mlp(x))


class VisionTransformer(nnx.Module):
    """Images (B, H, W, 3) to logits (B, classes)."""

    def __init__(self, fields: dict[str, Any], dtype: Any, rngs: nnx.Rngs):
        types: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.classifier = "mlp_dim" in fields
        dim, patch = fields["embed_dim"], fields["patch_size"]
        hidden = fields["mlp_dim"] if self.classifier else int(dim * fields["mlp_ratio"])
        rate = fields["drop_rate"]
        tokens = (fields["img_size"] // patch) ** 2 + 1
        self.patches = nnx.Conv(
            3, dim, (patch, patch), strides=(patch, patch), padding="VALID", **types
        )
        self.class_token = nnx.Param(jnp.zeros((1, 1, dim)))
        self.positions = nnx.Param(jnp.zeros((1, tokens, dim)))
        self.blocks = nnx.List(
            Block(dim, fields["num_heads"], hidden, rate, self.classifier, **types)
            for _ in range(fields["depth"])
        )
        self.norm = None if self.classifier else nnx.LayerNorm(dim, **types)
        widths = (dim, *(fields["mlp_head_units"] if self.classifier else ()))
        self.head = nnx.List(
            nnx.Linear(width, out, **types) for width, out in itertools.pairwise(widths)
        )
        self.head_dropout = nnx.Dropout(
            fields["head_drop_rate"] if self.classifier else 0.0, rngs=rngs
        )
        self.logits = nnx.Linear(widths[-1], fields["num_classes"], **types)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.patches(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = jnp.concatenate([jnp.tile(self.class_token[...], (x.shape[0], 1, 1)), x], axis=1)
        x = x + self.positions[...]
        for block in self.blocks:
            x = block(x)
        x = x[:, 0] if self.norm is None else self.norm(x)[:, 0]
        for linear in self.head:
            x = self.head_dropout(nnx.gelu(linear(x), approximate=False))
        return self.logits(x)


def make(work: Workload, form: str) -> Callable[[], Any]:
    fields = {"img_size": work.image_size, **work.fields}
    like = abstract_model(work.model, **fields)
    if like.design not in ("vit", "vit_classifier"):
        raise CannotCompute(f"{like.design} is not in the Flax documentation")
    fields = {**model_fields(work.model), **fields}
    model = VisionTransformer(fields, jnp.dtype(work.dtype), nnx.Rngs(0))
    if num_parameters(model) != num_parameters(like):
        raise CannotCompute(f"not the model {work.name}")
    rng = np.random.default_rng(0)
    shape = (work.batch, work.image_size, work.image_size, 3)
    images = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    if form == "forward":
        model.eval()
        forward = nnx.jit(lambda model, images: model(images))
        return lambda: forward(model, images).block_until_ready()
    labels = jnp.asarray(rng.integers(0, fields["num_classes"], work.batch), jnp.int32)
    optimizer = nnx.Optimizer(model, optax.adamw(1e-3, weight_decay=0.05), wrt=nnx.Param)

    @nnx.jit
    def train_step(model: Any, optimizer: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        def loss_of(model: Any) -> jax.Array:
            logits = model(images)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = nnx.value_and_grad(loss_of)(model)
        optimizer.update(model, gradients)
        return loss

    model.train()

    def step() -> None:
        train_step(model, optimizer, images, labels)
        jax.block_until_ready(nnx.state(optimizer))

    return step
