"""PyTorch code that is not ours: Hugging Face's ViT and DeiT, PyTorch's encoder, labml's layer."""

from typing import Any

import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from vit_jax.layers.encoder_layer import TransformerEncoder
from vit_jax.layers.prenorm_layer import TransformerLayer
from vit_jax.models.registry import abstract_model
from vit_jax.parity import OptimizerSpec, assert_parity, compare
from vit_jax.weights.dialects import to_own

transformers = pytest.importorskip("transformers")

_CONFIG: dict[str, Any] = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "num_labels": 5,
}
_FIELDS: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 4,
    "mlp_ratio": 2.0,
    "num_classes": 5,
    "norm_eps": 1e-12,
}


def redrawn(module: torch.nn.Module) -> torch.nn.Module:
    """Weights of unit scale: what starts as zero would hide its faults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 1 / max(parameter[:1].numel() if parameter.ndim else 1, 2) ** 0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def hugging_face(kind: str) -> tuple[torch.nn.Module, str]:
    if kind == "vit":
        config = transformers.ViTConfig(**_CONFIG)
        return redrawn(transformers.ViTForImageClassification(config)), "vit_tiny_patch16_224"
    config = transformers.DeiTConfig(**_CONFIG)
    module = transformers.DeiTForImageClassificationWithTeacher(config)
    return redrawn(module), "deit_tiny_distilled_patch16_224"


def ours(name: str, module: torch.nn.Module, **fields: Any) -> Any:
    model = abstract_model(name, **{**_FIELDS, **fields})
    arrays, dialect = to_own({n: t.numpy() for n, t in module.state_dict().items()})
    assert dialect == "huggingface"
    vit_jax.load_state_dict(model, arrays)
    model.eval()
    return model


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_hugging_face(kind: str) -> None:
    module, name = hugging_face(kind)
    optimizer = OptimizerSpec(steps=2) if kind == "vit" else None
    report = assert_parity(
        ours(name, module), module, grad=kind == "vit", optimizer=optimizer, precisions=("float64",)
    )
    stages = {row.name for row in report.rows if row.section == "forward"}
    wanted = {"patch_embed.proj", "blocks.0.norm1", "blocks.1.attn.proj", "blocks.1.mlp.fc1"}
    assert wanted | {"norm", "head", ""} <= stages


def test_hugging_face_with_timms_epsilon_is_told() -> None:
    module, name = hugging_face("vit")
    report = compare(ours(name, module, norm_eps=1e-6), module, grad=False, precisions=("float64",))
    assert report.stage == "blocks.0.norm1"
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "layer_norm_eps"
    assert report.diagnosis.complete
    assert "1e-06" in report.diagnosis.text
    assert "1e-12" in report.diagnosis.text


class Encoder(nnx.Module):
    """Ours, called like PyTorch's and with its names."""

    torch_names = ((r"^encoder\.", ""), (r"\.in_proj\.(weight|bias)$", r".in_proj_\1"))

    def __init__(self, depth: int, **layer: Any):
        self.encoder = TransformerEncoder(depth, scan=False, **layer)
        self.depth = depth

    def __call__(self, x):
        return self.encoder(x, drop_path_rates=(0.0,) * self.depth, remat="none")


_LAYER: dict[str, Any] = {
    "dim": 24,
    "num_heads": 4,
    "mlp_dim": 40,
    "norm_eps": 1e-5,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "dtype": np.float32,
    "param_dtype": np.float32,
}


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoder(activation: str) -> None:
    layer = torch.nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, activation=activation, batch_first=True
    )
    module = redrawn(torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    model = nnx.eval_shape(lambda: Encoder(2, batch_first=True, **_LAYER, rngs=nnx.Rngs(0)))
    vit_jax.load_state_dict(model, module.state_dict())
    tokens = np.random.default_rng(0).normal(size=(3, 7, 24))
    if activation == "relu":
        assert_parity(model, module, tokens, precisions=("float64",))
        return
    report = compare(model, module, tokens, grad=False, precisions=("float64",))
    assert report.stage == "layers.0"
    assert report.diagnosis is not None
    assert report.diagnosis.fault == "activation"
    assert "ReLU" in report.diagnosis.text
    assert "GELU (erf)" in report.diagnosis.text


class Prenorm(nnx.Module):
    torch_names = (
        (r"^layer\.", ""),
        (r"(^|\.)(query|key|value)\.(weight|bias)$", r"\1\2.linear.\3"),
    )

    def __init__(self, **layer: Any):
        self.layer = TransformerLayer(**layer)

    def __call__(self, x):
        return self.layer(x)


def test_labml() -> None:
    """Runs after `pip install --no-deps labml-nn==0.5.1 labml==0.4.168 labml-helpers==0.4.89`.

    Not in the extras: its own dependencies are a tracking service's.
    """
    pytest.importorskip("labml_nn.transformers.models")
    from labml_nn.transformers.feed_forward import FeedForward
    from labml_nn.transformers.mha import MultiHeadAttention
    from labml_nn.transformers.models import TransformerLayer as Labml

    class Tokens(torch.nn.Module):
        """It takes keywords alone, and the sequence before the batch."""

        def __init__(self):
            super().__init__()
            self.layer = Labml(
                d_model=24,
                self_attn=MultiHeadAttention(4, 24, dropout_prob=0.0),
                feed_forward=FeedForward(24, 40, dropout=0.0),
                dropout_prob=0.0,
            )

        def forward(self, x):
            return self.layer(x=x.transpose(0, 1), mask=None).transpose(0, 1)

    module = redrawn(Tokens())
    model = Prenorm(**_LAYER, rngs=nnx.Rngs(0))
    weights = {name.removeprefix("layer."): t for name, t in module.state_dict().items()}
    vit_jax.load_state_dict(model, weights)
    tokens = np.random.default_rng(0).normal(size=(3, 7, 24))
    names = ((r"^layer\.", ""),)
    report = assert_parity(model, module, tokens, names=names, precisions=("float64",))
    assert {row.name for row in report.rows if row.section == "gradients"} == weights.keys()
