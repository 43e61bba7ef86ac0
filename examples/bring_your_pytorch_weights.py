"""Bring PyTorch weights: the same logits in JAX, then fine-tuning from them.

    python examples/bring_your_pytorch_weights.py

Needs torch (`pip install torch`), since the script makes the PyTorch side too: a plain ViT with
timm's names, whose state dict `torch.save` writes. Reading the file needs no torch: with weights of
your own begin at `vit_jax.load_pretrained`. (These are random, so fine-tuning from them is no
better than from nothing; the call is the same.)
"""

import argparse
import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import vit_jax
from vit_jax.config import TrainConfig, find_recipe, load_recipe
from vit_jax.training import train

FIELDS = {
    "img_size": 32,
    "patch_size": 8,
    "in_chans": 1,
    "embed_dim": 64,
    "depth": 2,
    "num_heads": 4,
}


class Attention(torch.nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = torch.nn.Linear(dim, 3 * dim)
        self.proj = torch.nn.Linear(dim, dim)

    def forward(self, x):  # (B, N, D)
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x).chunk(3, dim=2)
        )
        x = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class Mlp(torch.nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = torch.nn.Linear(dim, 4 * dim)
        self.fc2 = torch.nn.Linear(4 * dim, dim)

    def forward(self, x):
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class Block(torch.nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.attn = torch.nn.LayerNorm(dim, eps=1e-6), Attention(dim, num_heads)
        self.norm2, self.mlp = torch.nn.LayerNorm(dim, eps=1e-6), Mlp(dim)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(torch.nn.Module):
    def __init__(self, patch_size: int, in_chans: int, dim: int):
        super().__init__()
        self.proj = torch.nn.Conv2d(in_chans, dim, patch_size, stride=patch_size)

    def forward(self, images):
        return self.proj(images).flatten(2).mT  # (B, N, D)


class TorchViT(torch.nn.Module):
    """Images (B, C, H, W) to logits (B, num_classes), with timm's names."""

    def __init__(self, img_size, patch_size, in_chans, embed_dim, depth, num_heads, num_classes):
        super().__init__()
        self.patch_embed = PatchEmbed(patch_size, in_chans, embed_dim)
        self.cls_token = torch.nn.Parameter(0.02 * torch.randn(1, 1, embed_dim))
        tokens = 1 + (img_size // patch_size) ** 2
        self.pos_embed = torch.nn.Parameter(0.02 * torch.randn(1, tokens, embed_dim))
        self.blocks = torch.nn.ModuleList(Block(embed_dim, num_heads) for _ in range(depth))
        self.norm = torch.nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = torch.nn.Linear(embed_dim, num_classes)

    def forward(self, images):
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def fine_tuning(weights: pathlib.Path, epochs: int, examples: int | None) -> TrainConfig:
    """The recipe of the digits, from these weights with a new head for its ten classes."""
    recipe = load_recipe(find_recipe("digits_vit"))
    return dataclasses.replace(
        recipe,
        num_epochs=epochs,
        init_from=str(weights),
        init_head="fresh",
        model=dataclasses.replace(recipe.model, kwargs={**FIELDS, "num_classes": 10}),
        data=dataclasses.replace(recipe.data, num_train_examples=examples),
        optimizer=dataclasses.replace(recipe.optimizer, learning_rate=5e-4, warmup_epochs=1.0),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, default="runs/bring_your_weights")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--examples", type=int, help="training images (default: all 1,257)")
    options = parser.parse_args()
    options.workdir.mkdir(parents=True, exist_ok=True)

    # PyTorch: a model of 20 classes, and its weights in a file.
    torch.manual_seed(0)
    reference = TorchViT(**FIELDS, num_classes=20).eval()
    weights = options.workdir / "vit.pth"
    torch.save(reference.state_dict(), weights)

    # JAX: a registered name gives the design, keywords its fields. Loading is strict.
    model = vit_jax.create_model("vit_tiny_patch16_224", rngs=nnx.Rngs(0), **FIELDS, num_classes=20)
    report = vit_jax.load_pretrained(model, weights)
    model.eval()
    print(f"{len(report.loaded)} arrays loaded, names of {report.dialect or 'timm'}")

    images = np.random.default_rng(0).normal(size=(4, 32, 32, 1)).astype(np.float32)  # NHWC
    with torch.no_grad():
        wanted = reference(torch.from_numpy(images.transpose(0, 3, 1, 2))).numpy()
    logits = np.asarray(model(jnp.asarray(images)))
    print(f"largest difference of a logit in float32: {np.abs(logits - wanted).max():.1e}")
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-5)

    # Fine-tuning starts from the file; another number of classes asks for a new head.
    config = fine_tuning(weights, options.epochs, options.examples)
    results = train(config, options.workdir / "fine_tuned")
    print(f"test top-1 {results['test_top1']:.3f} epochs: {options.epochs}")


if __name__ == "__main__":
    main()
