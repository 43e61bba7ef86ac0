"""The form of the step for the platform of its devices."""

import re
from typing import Any

import jax
import pytest
from flax import nnx

from tests.training.runs import tiny
from vit_jax.layers.forms import set_form
from vit_jax.plan.compile import abstract_inputs, planned_run
from vit_jax.training.step import jit_train_step


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


@pytest.mark.parametrize("asked", ["default", "high"])
def test_matmuls_have_the_precision_that_the_config_asks_for(asked, monkeypatch):
    """Forward, backward and in evaluation; tests have "highest" around them."""
    monkeypatch.setattr("vit_jax.training.step.compiler_options", lambda platform: None)
    run = planned_run(tiny(matmul_precision=asked))
    state, batch = abstract_inputs(run, (8, 8, 1))
    step: Any = run.steps.train
    for traced in (
        step.trace(state, batch).jaxpr,
        jax.make_jaxpr(run.steps.eval)(state, batch, state.sums),
    ):
        found = re.findall(r" precision=(.*)", str(traced))
        assert len(found) > 4
        assert set(found) == {"({0}, {0})".format(f"Precision.{asked.upper()}")}
