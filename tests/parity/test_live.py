"""Live comparison with PyTorch at random weights and sizes that no stored fixture has."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import vit_jax
from tests.parity import compare
from tests.reference.classifier_vit import ClassifierViT
from tests.reference.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("x64")

VIT = {"img_size": (15, 25), "patch_size": 5, "embed_dim": 12, "depth": 3, "num_heads": 3}
CLASSIFIER = {
    "img_size": (18, 30),
    "embed_dim": 12,
    "depth": 3,
    "num_heads": 2,
    "mlp_dim": 20,
    "mlp_head_units": (14, 11),
    "drop_rate": 0.0,
    "head_drop_rate": 0.0,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {"patch_size": (3, 5), "in_chans": 1},
    "channels": {"in_chans": 4, "num_heads": 6, "mlp_ratio": 2.5, "patchify": "unfold"},
    "scale": {"qk_scale": 0.37, "qkv_bias": False, "norm_eps": 1e-5, "representation_size": 7},
    "registers": {"reg_tokens": 3, "qk_norm": True, "init_values": 0.3},
    "deit3": {"no_embed_class": True, "init_values": 0.1, "in_chans": 1},
    "registers without positions": {"reg_tokens": 2, "no_embed_class": True, "in_chans": 4},
    "distilled": {"distilled": True, "representation_size": 7},
    "no classes": {"num_classes": 0, "in_chans": 1},
    "distilled, no classes": {"distilled": True, "num_classes": 0},
    "no pooling": {"global_pool": ""},
    "distilled without positions": {"distilled": True, "no_embed_class": True},
    "mean pool": {"global_pool": "avg", "class_token": False, "representation_size": 7},
    "max pool": {"global_pool": "max", "reg_tokens": 1},
    "mean and max pool": {"global_pool": "avgmax", "class_token": False, "reg_tokens": 2},
}
CLASSIFIER_CASES: dict[str, dict[str, Any]] = {
    "classifier": {"patch_size": 6, "in_chans": 1},
    "classifier conv": {"patch_size": (9, 5), "in_chans": 4, "patchify": "conv"},
    "classifier slots": {"patch_size": 6, "class_token_batch": 2, "norm_eps": 1e-5},
}


def build(case: str) -> tuple[torch.nn.Module, nnx.Module, dict[str, Any]]:
    """The reference with random float32 weights of unit scale, and ours, empty of them."""
    if case in CLASSIFIER_CASES:
        name, kind = "vit_classifier", ClassifierViT
        fields = {**CLASSIFIER, **CLASSIFIER_CASES[case]}
    else:
        name, kind = "vit_base_patch16_224", VisionTransformer
        fields = {**VIT, **CASES[case]}
    fields.setdefault("num_classes", 7)
    torch.manual_seed(0)
    reference = kind(**{key: value for key, value in fields.items() if key != "patchify"})
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.copy_(torch.randn_like(parameter) / max(parameter[0].numel(), 2) ** 0.5)
    model = vit_jax.create_model(
        name, rngs=nnx.Rngs(0), dtype=jnp.float64, param_dtype=jnp.float64, **fields
    )
    model.eval()
    return reference.eval(), model, fields


@pytest.mark.parametrize("case", [*CASES, *CLASSIFIER_CASES])
def test_equals_pytorch(case: str, record: compare.Record) -> None:
    """State dict both ways, logits, and the gradients of parameters and images."""
    reference, model, fields = build(case)
    weights = reference.state_dict()
    vit_jax.load_state_dict(model, weights)
    stored = vit_jax.state_dict(model)
    assert stored.keys() == weights.keys()
    chex.assert_trees_all_equal(
        stored, {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
    )
    copy = type(reference)(**{k: v for k, v in fields.items() if k != "patchify"}).double()
    copy.load_state_dict({name: torch.tensor(value) for name, value in stored.items()}, strict=True)

    reference = copy.eval()
    generator = np.random.default_rng(1)
    height, width = fields["img_size"]
    images = generator.normal(size=(2, height, width, fields.get("in_chans", 3)))

    torch_images = torch.tensor(images.transpose(0, 3, 1, 2), requires_grad=True)
    torch_logits = reference(torch_images)
    direction = generator.normal(size=torch_logits.shape)
    (torch_logits * torch.tensor(direction)).sum().backward()

    graph, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def differentiate(params, images):
        def value(params, images):
            logits = nnx.merge(graph, params, rest)(images)
            return (logits * direction).sum(), logits

        return jax.value_and_grad(value, argnums=(0, 1), has_aux=True)(params, images)

    (_, logits), (grads, image_grad) = differentiate(params, jnp.asarray(images))
    got = vit_jax.state_dict(nnx.merge(graph, grads, rest))
    got |= {"logits": np.asarray(logits), "images": np.asarray(image_grad).transpose(0, 3, 1, 2)}
    want = {name: parameter.grad.numpy() for name, parameter in reference.named_parameters()}
    want |= {"logits": torch_logits.detach().numpy(), "images": torch_images.grad.numpy()}
    scales = {name: compare.rms(value) for name, value in want.items()}
    for name in scales:
        if name.endswith("k_norm.bias"):  # its exact gradient is zero: see compare.is_key_bias
            scales[name] = scales[name.replace("bias", "weight")]
    record("logits and gradients", compare.assert_close(got, want, scales, compare.FLOAT64))
