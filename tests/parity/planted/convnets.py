"""ResNet and a squeeze-and-excitation MobileNet: PyTorch modules and their ports."""

import jax
import jax.numpy as jnp
import torch.nn.functional as F
from flax import nnx
from torch import nn

from tests.parity.planted.base import Port, architecture, normal
from tests.parity.ports import Unbiased


class TBasicBlock(nn.Module):
    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out_dim, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_dim)
        self.conv2 = nn.Conv2d(out_dim, out_dim, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_dim)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or dim != out_dim:
            self.shortcut = nn.Conv2d(dim, out_dim, 1, stride)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class TResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = TBasicBlock(8, 8, 1)
        self.layer2 = TBasicBlock(8, 12, 2)
        self.fc = nn.Linear(12, 5)

    def forward(self, x):
        x = self.maxpool(F.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


def batch_norm(dim: int, rngs: nnx.Rngs, epsilon: float = 1e-5) -> nnx.BatchNorm:
    return Unbiased(dim, momentum=0.9, epsilon=epsilon, rngs=rngs)


class BasicBlock(Port):
    def __init__(self, dim: int, out_dim: int, stride: int, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(dim, out_dim, (3, 3), stride, padding=1, use_bias=False, rngs=rngs)
        self.bn1 = batch_norm(out_dim, rngs)
        self.conv2 = nnx.Conv(out_dim, out_dim, (3, 3), padding=1, use_bias=False, rngs=rngs)
        self.bn2 = batch_norm(out_dim, rngs)
        changes = stride > 1 or dim != out_dim
        self.shortcut = nnx.data(
            nnx.Conv(dim, out_dim, (1, 1), stride, rngs=rngs) if changes else None
        )

    def __call__(self, x):
        y = self.bn2(self.conv2(nnx.relu(self.bn1(self.conv1(x)))))
        kept = x
        if self.shortcut is not None:
            kept = self.shortcut(x[:, 1:, 1:] if self.has("odd_pixels") else x)
        if self.has("no_shortcut"):
            return nnx.relu(y)
        if self.has("relu_first"):
            return nnx.relu(y) + kept
        return nnx.relu6(y + kept) if self.has("relu6") else nnx.relu(y + kept)


class ResNet(Port):
    def __init__(self, rngs: nnx.Rngs):
        self.conv1 = nnx.Conv(3, 8, (7, 7), 2, padding=3, use_bias=False, rngs=rngs)
        self.bn1 = batch_norm(8, rngs)
        self.layer1 = BasicBlock(8, 8, 1, rngs)
        self.layer2 = BasicBlock(8, 12, 2, rngs)
        self.fc = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.bn1(self.conv1(x)))
        around = "SAME" if self.has("same_pool") else ((1, 1), (1, 1))
        pool = nnx.avg_pool if self.has("avg_pool") else nnx.max_pool
        x = pool(x, (3, 3), (2, 2), around)
        x = self.layer2(self.layer1(x))
        return self.fc(x.mean((1, 2)))


architecture("resnet", TResNet, ResNet, lambda: 8 * normal(2, 32, 24, 3))


# ---------------------------------------------------------------------------- MobileNet


class TSqueezeExcite(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(dim, 4, 1), nn.Conv2d(4, dim, 1)

    def forward(self, x):
        y = F.relu(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * F.relu6(self.fc2(y) + 3) / 6


class TInverted(nn.Module):
    def __init__(self, dim: int, out_dim: int, stride: int):
        super().__init__()
        wide = 2 * dim
        self.expand = nn.Conv2d(dim, wide, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(wide, eps=1e-3)
        self.depthwise = nn.Conv2d(wide, wide, 3, stride, 1, groups=wide, bias=False)
        self.bn1 = nn.BatchNorm2d(wide, eps=1e-3)
        self.se = TSqueezeExcite(wide)
        self.project = nn.Conv2d(wide, out_dim, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_dim, eps=1e-3)
        self.residual = stride == 1 and dim == out_dim

    def forward(self, x):
        y = F.hardswish(self.bn0(self.expand(x)))
        y = self.se(F.hardswish(self.bn1(self.depthwise(y))))
        y = self.bn2(self.project(y))
        return x + y if self.residual else y


class TMobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.blocks = nn.Sequential(TInverted(8, 8, 1), TInverted(8, 12, 2))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(12, 5)

    def forward(self, x):
        x = self.blocks(F.relu6(4 * self.stem(x)))
        return self.classifier(self.dropout(x.mean((2, 3))))


class SqueezeExcite(Port):
    def __init__(self, dim: int, rngs: nnx.Rngs):
        self.fc1 = nnx.Conv(dim, 4, (1, 1), rngs=rngs)
        self.fc2 = nnx.Conv(4, dim, (1, 1), rngs=rngs)

    def __call__(self, x):
        squeeze = jnp.max if self.has("max") else jnp.mean
        y = self.fc2(nnx.relu(self.fc1(squeeze(x, axis=(1, 2), keepdims=True))))
        if self.has("sixth"):
            return x * nnx.relu6(y + 3) / 5
        return x * (nnx.sigmoid(y) if self.has("sigmoid") else jax.nn.hard_sigmoid(y))


class Inverted(Port):
    def __init__(self, dim: int, out_dim: int, stride: int, rngs: nnx.Rngs):
        wide = 2 * dim
        self.expand = nnx.Conv(dim, wide, (1, 1), use_bias=False, rngs=rngs)
        self.bn0 = batch_norm(wide, rngs, 1e-3)
        self.depthwise = nnx.Conv(
            wide,
            wide,
            (3, 3),
            stride,
            padding=1,
            feature_group_count=wide,
            use_bias=False,
            rngs=rngs,
        )
        self.bn1 = batch_norm(wide, rngs, 1e-3)
        self.se = SqueezeExcite(wide, rngs)
        self.project = nnx.Conv(wide, out_dim, (1, 1), use_bias=False, rngs=rngs)
        self.bn2 = batch_norm(out_dim, rngs, 1e-3)
        self.residual = stride == 1 and dim == out_dim

    def __call__(self, x):
        act = nnx.silu if self.has("silu") else jax.nn.hard_swish
        if self.has("three"):
            act = lambda x: x * nnx.relu6(x + 2) / 6  # noqa: E731
        y = act(self.bn0(self.expand(x)))
        y = act(self.bn1(self.depthwise(y)))
        y = y if self.has("no_se") else self.se(y)
        y = self.bn2(self.project(y))
        return x + y if self.residual else y


class MobileNet(Port):
    def __init__(self, rngs: nnx.Rngs):
        self.stem = nnx.Conv(3, 8, (3, 3), 2, padding=1, rngs=rngs)
        self.blocks = nnx.List([Inverted(8, 8, 1, rngs), Inverted(8, 12, 2, rngs)])
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.classifier = nnx.Linear(12, 5, rngs=rngs)

    def __call__(self, x):
        x = 4 * self.stem(x)
        x = nnx.relu(x) if self.has("relu") else nnx.relu6(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.dropout(x.mean((1, 2))))


architecture("mobilenet", TMobileNet, MobileNet, lambda: normal(2, 16, 16, 3), abstract=False)
