"""The compiler for GPUs without one: asked for in one line, and what is answered for a GPU."""

import importlib.metadata
import importlib.util
import json

import jax
import jax.numpy as jnp
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from tests.commands import run_alone
from vit_jax.models.macs import count_macs
from vit_jax.plan.gpu import require_plugin, traced_without_device


def test_a_plugin_of_another_jax_is_refused_with_the_command(monkeypatch):
    versions = {"jax": "0.10.2", "jax-cuda12-plugin": "0.9.0"}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match=r"of jax 0\.10\.2, and not 0\.9\.0 .*plugin==0\.10\.2 "):
        require_plugin()
    versions["jax-cuda12-plugin"] = "0.10.2"
    require_plugin()


def _attended(x):
    return jax.nn.dot_product_attention(x, x, x, implementation="cudnn").astype(jnp.float32).sum()


def test_cudnns_attention_is_traced_and_counted_without_a_device():
    check = fused_attention_stablehlo.check_cudnn_version
    x = jax.ShapeDtypeStruct((2, 6, 3, 8), jnp.bfloat16)
    with traced_without_device():
        forward = count_macs(_attended, x)
        both = count_macs(jax.grad(_attended), x)
    product = 2 * 3 * 6 * 6 * 8
    assert (forward, both) == (2 * product, (2 + 5) * product)
    assert fused_attention_stablehlo.check_cudnn_version is check  # JAX's own again


def test_checks_that_a_jax_has_elsewhere_are_told(monkeypatch):
    monkeypatch.delattr(fused_attention_stablehlo, "check_cudnn_version")
    with (
        pytest.raises(ValueError, match=r"check_cudnn_version.*--config\.attention=plain"),
        traced_without_device(),
    ):
        pass


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda12_plugin") is None,
    reason="JAX's plugin for CUDA is not installed",
)
def test_a_step_for_two_gpus_that_are_not_there(tmp_path):
    """The command as typed, with an odd number of tokens. The gradients move once."""
    model = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2}
    fields = {**model, "dtype": "bfloat16"}
    done = run_alone(
        *("-m", "vit_jax.cli", "plan", "--config=digits_vit"),
        *("--topology=h100:2", "--config.data.image_size=16", "--json"),
        *(f"--config.model.kwargs.{name}={value}" for name, value in fields.items()),
        cwd=tmp_path,
        timeout=600,
    )
    found = json.loads(done.stdout)
    counts = found["counts"]
    assert (found["devices"], found["fits"]) == (2, True)
    assert counts["library_calls"]["__cudnn$fmhaSoftmax"] == 2
    assert counts["library_calls"]["__cudnn$fmhaSoftmaxBackward"] == 2
    assert counts["kernels"] > sum(counts["library_calls"].values())
    assert counts["flops"] == pytest.approx(counts["step_flops"], rel=0.02)
    assert {row["kind"] for row in counts["exchanges"]} == {"all-reduce"}
