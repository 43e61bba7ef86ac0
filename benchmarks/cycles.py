"""Cycles that XLA expects a train step to take on a TPU, beside a plain Flax ViT's.

    python -m benchmarks.cycles [--depth 2] [--topology v5e:2x2]

ViT-B/16 in bfloat16, 32 images a chip, compiled by libtpu (`pip install 'vit-jax[tpu]'`; no TPU is
needed). "bare" is the step without what the plain one does not do: mirroring and cropping images,
and the norm by which gradients are clipped. One to six minutes each on two CPU cores.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from vit_jax.plan import libtpu

_MODEL, _IMAGES_A_CHIP = "vit_base_patch16_224", 32
_OURS = (
    f"--config.model.name={_MODEL}",
    "--config.model.kwargs.dtype=bfloat16",
    "--config.data.rand_augment=None",
    "--config.mix.mixup_alpha=0",
)
_BARE = (
    "--config.data.horizontal_flip=false",
    "--config.data.random_resized_crop=false",
    "--config.optimizer.gradient_clip_norm=None",
)


def ours(devices: Sequence[Any], depth: int, flags: Sequence[str]) -> str:
    """The compiled train step of `imagenet_vit_s16` with a ViT-B/16, as text."""
    from vit_jax.config.overrides import read_recipe
    from vit_jax.models.registry import model_fields
    from vit_jax.plan.compile import compile_step

    batch = _IMAGES_A_CHIP * len(devices)
    sizes = (
        f"--config.model.kwargs.depth={depth}",
        f"--config.data.batch_size={batch}",
        f"--config.data.eval_batch_size={batch}",
    )
    recipe = read_recipe("imagenet_vit_s16", [*_OURS, *sizes, *flags], model_fields)
    return compile_step(recipe.config, devices).text


def plain_flax(devices: Sequence[Any], depth: int) -> str:
    """The compiled train step of the ViT of the Flax documentation, as text."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    from benchmarks.contestants.plain_flax import VisionTransformer
    from vit_jax.models.registry import model_fields

    fields = {"img_size": 224, "num_classes": 1000, "drop_rate": 0.0}
    fields |= {**model_fields(_MODEL), "depth": depth}
    abstract = nnx.eval_shape(lambda: VisionTransformer(fields, jnp.bfloat16, nnx.Rngs(0)))
    graph, params, others = nnx.split(abstract, nnx.Param, ...)
    optimizer = optax.adamw(1e-3, weight_decay=0.05)

    def step(params: Any, others: Any, moments: Any, images: Any, labels: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            normalised = (images.astype(jnp.float32) / 255 - 0.5) / 0.5
            logits = nnx.merge(graph, params, others)(normalised).astype(jnp.float32)
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return optax.apply_updates(params, updates), moments, loss

    mesh = Mesh(np.asarray(devices), ("data",))
    everywhere = NamedSharding(mesh, PartitionSpec())
    divided = NamedSharding(mesh, PartitionSpec("data"))
    batch = _IMAGES_A_CHIP * len(devices)
    state = jax.tree.map(
        lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=everywhere),
        (params, others, jax.eval_shape(optimizer.init, params)),
    )
    images = jax.ShapeDtypeStruct((batch, 224, 224, 3), jnp.uint8, sharding=divided)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=divided)
    compiled = jax.jit(step, donate_argnums=(0, 2), out_shardings=everywhere)
    return compiled.lower(*state, images, labels).compile().as_text() or ""


def main() -> int:
    parser = argparse.ArgumentParser(description="cycles of a ViT-B/16 step on a TPU")
    parser.add_argument("--depth", type=int, default=2, help="blocks")
    parser.add_argument("--topology", default="v5e:2x2", help="as of `vit-jax plan`")
    options = parser.parse_args()
    libtpu.prepare_environment()
    from vit_jax.plan.cycles import estimated_cycles
    from vit_jax.plan.hlo import HloProgram
    from vit_jax.plan.topology import parse_topology

    devices = libtpu.devices_of(parse_topology(options.topology))
    contestants = {
        "the recipe's step": lambda: ours(devices, options.depth, ()),
        "bare": lambda: ours(devices, options.depth, _BARE),
        "plain Flax": lambda: plain_flax(devices, options.depth),
    }
    for name, compiled in contestants.items():
        total, copies = estimated_cycles(HloProgram(compiled()))
        print(f"{name:18} {total:12,} cycles, {copies / total:.1%} of them copies", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
