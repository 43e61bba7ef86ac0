"""Port a model of your own: an MLP-Mixer in NNX beside its PyTorch module, and a fault found.

    python examples/port_a_model.py

Needs torch (`pip install torch`). The port has the attributes of the PyTorch module, and by these
alone `vit_jax` matches weights, stages and gradients: neither class knows of it. A second port has
a mistake of the kind that no test of shapes sees, and that moves the logits by 4e-5;
`compare` says where it stands and what it is, and `assert_parity` fails.
"""

import jax
import numpy as np
import torch
from flax import nnx

import vit_jax
from vit_jax.parity import assert_parity, compare

DIM, TOKENS, CLASSES = 24, 16, 10


class TorchMlp(torch.nn.Module):
    def __init__(self, dim: int, hidden_dim: int):
        super().__init__()
        self.fc1 = torch.nn.Linear(dim, hidden_dim)
        self.fc2 = torch.nn.Linear(hidden_dim, dim)

    def forward(self, x):
        return self.fc2(torch.nn.functional.gelu(self.fc1(x)))


class TorchBlock(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = torch.nn.LayerNorm(DIM), torch.nn.LayerNorm(DIM)
        self.mlp_tokens, self.mlp_channels = TorchMlp(TOKENS, 32), TorchMlp(DIM, 96)

    def forward(self, x):  # (B, N, D)
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class TorchMixer(torch.nn.Module):
    """Images (B, 3, 16, 16) to logits (B, 10)."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, DIM, 4, stride=4)
        self.blocks = torch.nn.ModuleList(TorchBlock() for _ in range(2))
        self.norm = torch.nn.LayerNorm(DIM)
        self.head = torch.nn.Linear(DIM, CLASSES)

    def forward(self, images):
        x = self.stem(images).flatten(2).mT  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


class Mlp(nnx.Module):
    def __init__(self, dim: int, hidden_dim: int, *, exact_gelu: bool, rngs: nnx.Rngs):
        self.fc1 = nnx.Linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = nnx.Linear(hidden_dim, dim, rngs=rngs)
        self.exact_gelu = exact_gelu

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(jax.nn.gelu(self.fc1(x), approximate=not self.exact_gelu))


class Block(nnx.Module):
    def __init__(self, *, exact_gelu: bool, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs)  # Flax's default is 1e-6
        self.norm2 = nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs)
        self.mlp_tokens = Mlp(TOKENS, 32, exact_gelu=True, rngs=rngs)
        self.mlp_channels = Mlp(DIM, 96, exact_gelu=exact_gelu, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:  # (B, N, D)
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class Mixer(nnx.Module):
    """Images (B, 16, 16, 3) to logits (B, 10).

    Args:
      has_fault: the second block's channels go through JAX's default GELU, the tanh form.
      rngs: of the initial weights.
    """

    def __init__(self, *, has_fault: bool = False, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, DIM, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.blocks = nnx.List(Block(exact_gelu=not (has_fault and i), rngs=rngs) for i in range(2))
        self.norm = nnx.LayerNorm(DIM, epsilon=1e-5, rngs=rngs)
        self.head = nnx.Linear(DIM, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        x = self.stem(images).reshape(len(images), TOKENS, DIM)  # (B, N, D)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def main() -> None:
    torch.manual_seed(0)
    reference = TorchMixer()
    images = np.random.default_rng(0).normal(size=(2, 16, 16, 3))  # (B, H, W, C)

    model = Mixer(rngs=nnx.Rngs(0))
    vit_jax.load_state_dict(model, reference.state_dict())
    report = assert_parity(model, reference, images)
    forward, gradients = report.worst("forward"), report.worst("gradients")
    assert forward is not None
    assert gradients is not None
    print(f"{len(report.rows)} comparisons, all of them noise; at most, in float64:")
    print(f"  of a stage     {forward.max_abs:.1e} ({forward.name})")
    print(f"  of a gradient  {gradients.max_abs:.1e} ({gradients.name})")

    wrong = Mixer(has_fault=True, rngs=nnx.Rngs(0))
    vit_jax.load_state_dict(wrong, reference.state_dict())
    report = compare(wrong, reference, images, grad=False, precisions=["float64"])
    assert report.diagnosis is not None, "the fault was not found"
    logits = next(row for row in report.rows if row.section == "forward" and not row.name)
    print(f"\nthe port with a fault: its logits differ by {logits.max_abs:.1e}")
    print(f"  where: {report.stage}")
    print(f"  what:  {report.diagnosis.text}")
    try:
        assert_parity(wrong, reference, images, grad=False, precisions=["float64"], diagnose=False)
    except AssertionError as error:
        print(f"  and a test of it fails: {str(error).splitlines()[0]}")


if __name__ == "__main__":
    main()
