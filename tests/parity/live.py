"""Comparison with a PyTorch reference at random weights, both built on the spot."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

import vit_jax
from tests.parity import compare


@torch.no_grad()
def randomised(reference: torch.nn.Module) -> torch.nn.Module:
    """Float32 weights of unit scale; frozen arrays stay as they are."""
    for name, parameter in reference.named_parameters():
        if parameter.requires_grad:
            # A key or query of norm n has performer features of about exp(-n * n / 2).
            gain = 0.25 if name.endswith("kqv.weight") else 1.0
            scale = gain / max(parameter[0].numel(), 2) ** 0.5
            parameter.copy_(scale * torch.randn_like(parameter))
    return reference


def assert_equals_pytorch(
    make_reference: Callable[[], torch.nn.Module],
    model: nnx.Module,
    image_shape: tuple[int, int, int],
    record: compare.Record,
) -> None:
    """State dict both ways, logits, and the gradients of parameters and images."""
    torch.manual_seed(0)
    weights = randomised(make_reference()).state_dict()
    vit_jax.load_state_dict(model, weights)
    stored = vit_jax.state_dict(model)
    firsts: dict[int, str] = {}  # tied arrays are stored once, under their first name
    for name, tensor in weights.items():
        firsts.setdefault(tensor.data_ptr(), name)
    chex.assert_trees_all_equal(
        stored, {name: weights[name].numpy().astype(np.float64) for name in firsts.values()}
    )
    reference = make_reference().double().eval()
    loaded = reference.load_state_dict(
        {name: torch.tensor(value) for name, value in stored.items()}, strict=False
    )
    assert set(loaded.missing_keys) == weights.keys() - stored.keys()
    assert not loaded.unexpected_keys
    generator = np.random.default_rng(1)
    images = generator.normal(size=(2, *image_shape))

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
    want = {
        name: parameter.grad.numpy()
        for name, parameter in reference.named_parameters()
        if parameter.requires_grad
    }
    trained = {id(variable) for _, variable in nnx.iter_graph(model) if type(variable) is nnx.Param}
    assert len(trained) == len(want)
    named = vit_jax.state_dict(nnx.merge(graph, grads, rest))
    got = {name: named[name] for name in want}
    got |= {"logits": np.asarray(logits), "images": np.asarray(image_grad).transpose(0, 3, 1, 2)}
    want |= {"logits": torch_logits.detach().numpy(), "images": torch_images.grad.numpy()}
    scales = {name: compare.rms(value) for name, value in want.items()}
    for name in scales:
        if name.endswith(("k_norm.bias", "attn.k.bias", "key.linear.bias")):
            # Its exact gradient is zero: see compare.is_key_bias.
            scales[name] = scales[name.replace("bias", "weight")]
    record("logits and gradients", compare.assert_close(got, want, scales, compare.FLOAT64))
