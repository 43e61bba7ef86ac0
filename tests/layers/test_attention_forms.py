"""The forms of attention that suit CPUs, GPUs and TPUs give the numbers of the plain one."""

import functools
import re
import types
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vit_jax.layers import attention
from vit_jax.layers.attention import Attention, AttentionForm, MultiheadAttention
from vit_jax.layers.forms import attention_form, compiler_options, set_form
from vit_jax.layers.lazy_softmax import gathered, products
from vit_jax.layers.linear import wide_matmul
from vit_jax.layers.relative_bias import BiasedAttention
from vit_jax.layers.rotary import RotaryAttention
from vit_jax.layers.talking_heads import TalkingHeadsAttention
from vit_jax.layers.token_transformer import TokenAttention
from vit_jax.layers.window_attention import CosineWindowAttention, WindowAttention

_INIT: Any = nnx.initializers.normal(0.5)
_FUSED = AttentionForm("fused", 256)
_LAZY = AttentionForm("lazy")


def _built(kind: Any, dtype: Any = jnp.float32, **fields: Any) -> Any:
    types_: dict[str, Any] = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    if kind is TokenAttention:
        return kind(16, 8, qk_scale=None, drop_rate=0.0, kernel_init=_INIT, **types_)
    if kind is MultiheadAttention:
        return kind(16, 2, attn_drop_rate=0.0, **types_)
    given = {"qkv_bias": True, "qk_scale": 0.3, "qk_norm": False, "norm_eps": 1e-6}
    given |= {"attn_drop_rate": 0.0, "proj_drop_rate": 0.0}
    given |= {"kernel_init": _INIT, "bias_init": _INIT}
    if kind in (WindowAttention, CosineWindowAttention):  # of 5 tokens
        del given["qk_scale"], given["qk_norm"]
        given["window"] = (1, 5)
    return kind(16, 2, **given | fields, **types_)


@functools.cache
def _modules() -> list[tuple[Any, tuple[jax.Array, ...]]]:
    """Modules with the context of a call of theirs."""
    angles = jnp.arange(16.0).reshape(1, 4, 4)
    table = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])
    mask = jnp.array([[True] * 5, [True, False, True, True, False]])
    return [
        (_built(Attention, qk_norm=True, k_bias=False), ()),
        (_built(Attention, qkv_bias=False), (mask,)),
        (_built(RotaryAttention), (table,)),
        (_built(MultiheadAttention), ()),
        (_built(TokenAttention), ()),
    ]


@functools.cache
def _biased() -> list[tuple[Any, tuple[jax.Array, ...]]]:
    """Those that add something to their scores, and one with dropout on its weights."""
    regions = jnp.array([[0, 0, 1, 1, 1]])
    bias = jax.random.normal(jax.random.key(3), (1, 2, 5, 5))
    same = (jnp.eye(3), jnp.eye(3))  # of a grid of 2x2, at its own size
    return [
        (_built(WindowAttention), (regions,)),
        (_built(CosineWindowAttention, trained=(1, 5)), ()),
        (_built(BiasedAttention, grid=(2, 2)), (*same, bias)),
        (_built(BiasedAttention, grid=None), same),
        (_built(Attention, attn_drop_rate=0.3), ()),
    ]


def _outputs_and_gradients(form: str, modules: Any) -> Any:
    """Of all modules, of an odd number of tokens."""
    x = jax.random.normal(jax.random.key(0), (2, 5, 16))

    def loss(module, x, context):
        key = jax.random.key(7) if isinstance(module, Attention) else None
        y = module(x, *context) if key is None else module(x, *context, key=key)
        return jnp.sin(y).sum(), y

    @jax.jit
    def run(modules, x):
        differentiate = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
        found = [differentiate(module, x, context) for module, context in modules]
        return [(y, nnx.state(of_weights), of_x) for (_, y), (of_weights, of_x) in found]

    modules = [(nnx.clone(module), context) for module, context in modules]
    for module, _ in modules:
        module.form = form
    return run(modules, x)


def test_other_forms_give_the_numbers_of_the_plain_one(monkeypatch):
    """One token of padding, the lengths told, one matmul each for q, k and v: float32 on a CPU."""
    calls = []

    def on_cpu(*arrays, tokens, **fields):
        calls.append((arrays[0].shape[2], tokens))
        return fused(*arrays, tokens=tokens, implementation="xla", **fields)

    fused = attention.fused_attention
    monkeypatch.setattr(attention, "fused_attention", on_cpu)
    plain = _outputs_and_gradients("auto", _modules())
    assert calls == []
    for form in ("heads", "fused", "lazy"):
        found = _outputs_and_gradients(form, _modules())
        chex.assert_trees_all_close(found, plain, rtol=2e-5, atol=2e-5)
    # Not the masked one; those whose projections know the places of their tokens pad later.
    assert calls == [(6, 5), (5, 5), (6, 5), (5, 5)]


def test_the_lazy_softmax_has_biases_masks_and_dropout():
    found, plain = (_outputs_and_gradients(form, _biased()) for form in ("lazy", "auto"))
    chex.assert_trees_all_close(found, plain, rtol=2e-5, atol=2e-5)


def test_the_lazy_softmax_multiplies_no_transposed_scores():
    """XLA would turn (x^T scores)^T round."""

    def loss(q, k, v):
        return gathered(products(q, k), v, 0.0, None).sum()

    heads = jnp.ones((2, 3, 5, 4))
    compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2)), compiler_options=compiler_options("cpu"))
    text = compiled.lower(heads, heads, heads).compile().as_text()
    dots = re.findall(r"f32(\S+?){\S+ dot\(.*lhs_contracting_dims={(\d)}", text)
    assert len(dots) == 6
    assert ("[2,3,5,4]", "2") not in dots  # (images, heads, tokens, width) of scores^T x


@pytest.mark.parametrize(
    ("kind", "dtype", "form"),
    [
        (Attention, jnp.float32, "lazy"),
        (Attention, jnp.float64, "lazy"),
        (Attention, jnp.bfloat16, "auto"),
        (TalkingHeadsAttention, jnp.float32, "auto"),
    ],
)
def test_what_is_lazy_on_a_cpu(kind, dtype, form):
    with jax.enable_x64(True):
        module = nnx.eval_shape(lambda: _built(kind, dtype))
    set_form(module, "cpu", attention=_LAZY)
    assert module.form == form


@pytest.mark.parametrize(
    ("kind", "fields", "why"),
    [
        (Attention, {}, ""),
        (MultiheadAttention, {}, ""),
        (TokenAttention, {}, ""),
        (RotaryAttention, {}, ""),
        (Attention, {"dtype": jnp.float32}, "computes in float32"),
        (Attention, {"attn_drop_rate": 0.1}, "dropout on attention weights"),
        (TalkingHeadsAttention, {}, "TalkingHeadsAttention biases or mixes its scores"),
        (WindowAttention, {}, "WindowAttention biases or mixes its scores"),
    ],
)
def test_what_cudnn_cannot_compute_keeps_the_plain_form(kind, fields, why):
    module = nnx.eval_shape(lambda: _built(kind, **{"dtype": jnp.bfloat16, **fields}))
    assert why in module.why_plain(_FUSED)
    assert bool(why) == bool(module.why_plain(_FUSED))
    set_form(module, "gpu", attention=_FUSED)
    assert module.form == ("auto" if why else "fused")
    set_form(module, "tpu", attention=AttentionForm("heads"))
    assert module.form == "heads"
    set_form(module, "gpu")
    assert module.form == "auto"


def test_wide_heads_keep_the_plain_form():
    module = nnx.eval_shape(lambda: _built(Attention, jnp.bfloat16))
    why = module.why_plain(AttentionForm("fused", 4))
    assert why == "heads of width 8: cuDNN takes multiples of 8 up to 4"


@pytest.mark.parametrize(
    ("platform", "capability", "form"),
    [
        ("cpu", None, AttentionForm("lazy")),
        ("tpu", None, AttentionForm("heads")),
        ("gpu", "7.0", AttentionForm()),
        ("gpu", "8.0", AttentionForm("fused", 128)),
        ("gpu", "9.0", AttentionForm("fused", 256)),
        ("gpu", "12.0", AttentionForm("fused", 256)),
        ("gpu", "gfx942", AttentionForm()),  # AMD's
    ],
)
def test_the_form_follows_from_the_device(platform, capability, form):
    device = types.SimpleNamespace(platform=platform)
    if capability is not None:
        device.compute_capability = capability
    assert attention_form(device) == form


@pytest.mark.parametrize("shapes", [((2, 3, 5, 8), (2, 3, 8, 6)), ((3, 5, 8), (8, 6))])
def test_a_wide_product_has_narrow_gradients(shapes):
    x, y = (
        jax.random.normal(jax.random.key(i), shape, jnp.bfloat16) for i, shape in enumerate(shapes)
    )

    def loss(product, x, y):
        return jnp.sin(product(x, y)).sum()

    def plain(x, y):
        return jnp.matmul(x, y, preferred_element_type=jnp.float32)

    def run(product, x, y):
        return product(x, y), jax.grad(loss, argnums=(1, 2))(product, x, y)

    found, wanted = (functools.partial(run, product) for product in (wide_matmul, plain))
    products = [
        equation
        for equation in jax.make_jaxpr(jax.grad(loss, argnums=(1, 2)), (0,))(wide_matmul, x, y).eqns
        if equation.primitive.name == "dot_general"
    ]
    assert {variable.aval.dtype.name for e in products for variable in e.invars} == {"bfloat16"}
    (y_found, of_found), (y_wanted, of_wanted) = jax.jit(lambda x, y: (found(x, y), wanted(x, y)))(
        x, y
    )
    assert y_found.dtype == jnp.float32
    np.testing.assert_array_equal(y_found, y_wanted)
    for got, want in zip(of_found, of_wanted, strict=True):
        got, want = np.asarray(got, np.float32), np.asarray(want, np.float32)
        assert np.abs(got - want).max() <= 2**-7 * np.abs(want).max()
