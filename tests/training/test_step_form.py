"""The form of the step for the platform of its devices."""

import dataclasses
from typing import Any

import pytest

from tests.training.runs import tiny
from vit_jax.data.statistics import Statistics
from vit_jax.plan.compile import abstract_inputs
from vit_jax.training.program import abstract_model_of, config_mesh, make_program
from vit_jax.training.step import jit_train_step


@pytest.mark.parametrize("remat", ["none", pytest.param("blocks", marks=pytest.mark.slow)])
def test_the_train_step_is_traced_and_compiled_for_its_devices(remat):
    config = tiny(model__kwargs__depth=2, model__kwargs__remat=remat)
    mesh = config_mesh(config)
    program = make_program(config, mesh, abstract_model_of(config), Statistics((0.5,), (0.5,)), 10)
    inputs = abstract_inputs(config, program, (8, 8, 1))

    def barriers(platform):
        settings = dataclasses.replace(program.settings, platform=platform)
        step: Any = jit_train_step(settings, mesh, program.shardings)
        return step.lower(*inputs).compile().as_text().count("opt-barrier(")

    assert program.settings.platform == "cpu"
    # One a layer, forward and backward.
    assert barriers("cpu") >= 4
    assert barriers("tpu") == 0
