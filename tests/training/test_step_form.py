"""The form of the step for the platform of its devices."""

from typing import Any
from unittest import mock

import jax
import pytest
from flax import nnx
from jax.sharding import Mesh

from tests.training.runs import tiny
from vit_jax.layers.attention import AttentionForm, SoftmaxAttention
from vit_jax.layers.forms import set_form
from vit_jax.plan.compile import abstract_inputs, planned_run
from vit_jax.training.run import is_row_major
from vit_jax.training.step import jit_train_step, make_eval_step


@pytest.mark.parametrize("remat", ["none", pytest.param("blocks", marks=pytest.mark.slow)])
def test_the_train_step_is_traced_and_compiled_for_its_devices(remat):
    config = tiny(model__kwargs__depth=2, model__kwargs__remat=remat)
    run = planned_run(config)
    inputs = abstract_inputs(run, (8, 8, 1))

    def barriers(platform):
        set_form(run.model, platform)
        run.platform, run.train_graph = platform, nnx.graphdef(run.model)
        step: Any = jit_train_step(run)
        return step.lower(*inputs).compile().as_text().count("opt-barrier(")

    assert run.platform == "cpu"
    # One a layer, forward and backward.
    assert barriers("cpu") >= 4
    assert barriers("tpu") == 0


@pytest.mark.parametrize(("platform", "wanted"), [("cpu", True), ("tpu", False)])
def test_a_cpu_draws_its_dropout_in_one_loop(platform, wanted):
    run = planned_run(tiny(model__kwargs__drop_rate=0.1))
    run.platform = platform
    step: Any = jit_train_step(run)
    trace = str(step.trace(*abstract_inputs(run, (8, 8, 1))).jaxpr)
    assert "key<fry" in trace
    assert ("key<fry1by1>" in trace) == wanted


def test_matmuls_have_the_precision_that_the_run_asks_for():
    """Forward, backward and in evaluation; asked for by nobody, they are as JAX is set."""
    high = "precision=(Precision.HIGH,Precision.HIGH)"

    def products(config):
        run = planned_run(config)
        state, batch = abstract_inputs(run, (8, 8, 1))
        step: Any = jit_train_step(run)
        run.platform = "tpu"  # a step without options may be traced inside of another trace
        evaluate = jax.make_jaxpr(make_eval_step(run))
        traces = step.trace(state, batch).jaxpr, evaluate(state, batch, state.sums)
        texts = ["".join(str(trace).split()) for trace in traces]
        kinds = ("dot_general[", "conv_general_dilated[")
        return [(sum(map(text.count, kinds)), text.count(high)) for text in texts]

    asked = products(tiny(model__kwargs__depth=1, matmul_precision="high"))
    left_alone = products(tiny(model__kwargs__depth=1))
    for (number, of_them), (_, before) in zip(asked, left_alone, strict=True):
        assert number >= 6
        assert of_them == number > before


def test_attention_takes_the_form_of_the_devices_unless_it_is_to_be_plain(monkeypatch):
    form = AttentionForm("heads")
    monkeypatch.setattr("vit_jax.training.run.attention_form", lambda device: form)
    for asked, wanted in (("auto", "heads"), ("plain", "auto")):
        assert _attention_forms(tiny(attention=asked)) == {wanted}


@pytest.mark.parametrize(
    ("form", "devices", "parts", "wanted"),
    [
        ("heads", 2, 2, "auto"),
        ("heads", 2, 1, "heads"),
        ("heads", 1, 2, "heads"),
        ("fused", 2, 2, "fused"),
    ],
)
def test_an_accumulated_batch_on_several_devices_has_no_heads_form(
    form, devices, parts, wanted, monkeypatch
):
    """XLA for TPUs would exchange its gradients in every part."""
    monkeypatch.setattr("vit_jax.training.run.attention_form", lambda _: AttentionForm(form, 256))
    monkeypatch.setattr("vit_jax.layers.attention.SoftmaxAttention.why_plain", lambda *_: "")
    config = tiny(accumulation_steps=parts)
    assert _attention_forms(config, jax.devices()[:1] * devices) == {wanted}


@pytest.mark.parametrize(
    ("platform", "devices", "wanted"),
    [("gpu", 1, True), ("gpu", 8, False), ("tpu", 1, False), ("cpu", 1, False)],
)
def test_the_order_in_memory_is_that_of_a_single_gpu(platform, devices, wanted):
    """XLA would gather the tokens of all devices on each."""
    mesh = mock.create_autospec(Mesh, instance=True)
    mesh.size, mesh.devices = devices, mock.Mock(flat=[mock.Mock(platform=platform)] * devices)
    assert is_row_major(mesh) == wanted


def _attention_forms(config, devices=None):
    modules = nnx.iter_modules(planned_run(config, devices).model)
    return {m.form for _, m in modules if isinstance(m, SoftmaxAttention)}
