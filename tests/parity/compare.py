"""The one standard of every parity test: errors relative to the rms of what is compared.

Float64 has to agree to 1e-12 of the rms. That leaves room for the order of sums (measured: at most
a few 1e-14) and none for an error of substance: the smallest mutation of test_mutations.py moves
an output by more than 1e-6.
"""

import re
from collections.abc import Callable, Mapping

import chex
import numpy as np

from tests.golden import Golden
from tests.parity.evaluation import Evaluation
from vit_jax.parity.sampled import first8, norm
from vit_jax.parity.values import rms

FLOAT64 = 1e-12
# The biases of keys alone: of their norm, and of seed 001's Linear.
_KEY_BIAS = re.compile(r"((?:k_norm|\.key\.linear)\.)bias$")
Record = Callable[[str, float], None]


def assert_close(
    got: Mapping[str, np.ndarray],
    want: Mapping[str, np.ndarray],
    scales: Mapping[str, float],
    tolerance: float,
) -> float:
    """Holds max|got - want| to tolerance * scale for each name; returns the worst such ratio.

    A scale of zero is that of exact zeros, which only exact zeros meet.
    """
    assert got.keys() == want.keys()
    scales = {name: scale or float(np.finfo(np.float64).tiny) for name, scale in scales.items()}
    scaled_got = {name: np.asarray(got[name], np.float64) / scales[name] for name in want}
    scaled_want = {name: np.asarray(want[name], np.float64) / scales[name] for name in want}
    chex.assert_trees_all_equal_shapes(scaled_got, scaled_want)
    chex.assert_tree_all_finite(scaled_got)
    chex.assert_trees_all_close(scaled_got, scaled_want, rtol=0, atol=tolerance)
    return max(float(np.max(np.abs(scaled_got[name] - scaled_want[name]))) for name in want)


def assert_forward(
    golden: Golden, logits: np.ndarray, stages: Mapping[str, np.ndarray], record: Record
) -> None:
    """Logits and every stored stage of a float64 run against the fixture."""
    want = golden.arrays["logits_f64"]
    worst = assert_close({"logits": logits}, {"logits": want}, {"logits": rms(want)}, FLOAT64)
    record("logits", worst)
    got, want, scales = {}, {}, {}
    for name, entry in golden.spec["activations"].items():
        output = stages[name]
        assert list(output.shape) == entry["shape"], name
        mean, l2 = golden.arrays[f"act_stats/{name}"]
        scale = l2 / np.sqrt(output.size)
        kept = output[:, :16] if output.ndim == 2 else output[:, :4, :16]
        for part, value, reference, unit in (
            ("values", kept, golden.arrays[f"act/{name}"], scale),
            ("mean", output.mean(), mean, scale),
            ("l2", norm(output), l2, l2),
        ):
            got[f"{name} {part}"], want[f"{name} {part}"] = value, reference
            scales[f"{name} {part}"] = unit
    record("stages", assert_close(got, want, scales, FLOAT64))


def assert_gradients(golden: Golden, result: Evaluation, record: Record) -> None:
    """Loss, every parameter's gradient and the input's, of a float64 run."""
    loss = golden.arrays["loss_f64"]
    record("loss", assert_close({"": result.loss}, {"": loss}, {"": float(loss)}, FLOAT64))
    got, want, scales = by_parameter(
        result.gradients, golden, golden.arrays["grad_first8"], golden.arrays["grad_l2"]
    )
    l2 = float(golden.arrays["input_grad_l2"])
    got["input"], got["input l2"] = first8(result.image_gradient), norm(result.image_gradient)
    want["input"], want["input l2"] = golden.arrays["input_grad_first8"], l2
    scales["input"], scales["input l2"] = l2 / np.sqrt(result.image_gradient.size), l2
    record("gradients", assert_close(got, want, scales, FLOAT64))
    for name in golden.spec["params_without_grad"]:
        chex.assert_trees_all_equal(result.gradients[name], np.zeros_like(golden.params[name]))


def by_parameter(named, golden, first, l2):
    """First values and norms of each parameter that has a gradient, with their scales."""
    names = golden.spec["grad_names"]
    assert set(named) == set(names)
    got, want, scales = {}, {}, {}
    for index, name in enumerate(names):
        if name in golden.spec["params_without_grad"]:
            continue  # compared bit by bit
        got[name], want[name] = first8(named[name]), first[index]
        got[f"{name} l2"], want[f"{name} l2"] = norm(named[name]), l2[index]
        # All of this gradient is rounding (see is_key_bias): its weight's gives it a scale.
        scale_from = names.index(_KEY_BIAS.sub(r"\1weight", name))
        scales[f"{name} l2"] = float(l2[scale_from])
        scales[name] = float(l2[scale_from]) / np.sqrt(named[name].size)
    return got, want, scales


def is_key_bias(name: str) -> bool:
    """Whether a compared value depends on a bias of the keys.

    The softmax does not see it, so its exact gradient is zero and what arrives is rounding (about
    1e-17), which Adam divides by itself plus 1e-8: ten steps of 1e-3 * 1e-17 / 1e-8 = 1e-12.
    The first eight values of a stacked bias are the queries'.
    """
    name, is_norm = name.removesuffix(" l2"), name.endswith(" l2")
    stacked = is_norm and name.endswith(("qkv.bias", "in_proj_bias"))
    return stacked or bool(_KEY_BIAS.search(name))


# Two runs of PyTorch's own trajectory in float64, the batch in the other order, differ in these
# parameters by up to 2.8e-10 of their rms: see test_noise_floor.py. Ours are 1.3e-11 off at most.
KEY_BIAS = 3e-10


def assert_trajectory(
    golden: Golden, losses: np.ndarray, trained: Mapping[str, np.ndarray], record: Record
) -> None:
    """Ten AdamW steps of a float64 run: the losses and every trained parameter."""
    want_losses = golden.arrays["traj_loss_f64"]
    scale = {"": rms(want_losses)}
    record("trajectory", assert_close({"": losses}, {"": want_losses}, scale, FLOAT64))
    got, want, scales = by_parameter(
        trained, golden, golden.arrays["traj_param_first8"], golden.arrays["traj_param_l2"]
    )
    for group, tolerance, selected in (
        ("trained", FLOAT64, [name for name in got if not is_key_bias(name)]),
        ("key biases", KEY_BIAS, [name for name in got if is_key_bias(name)]),
    ):
        if selected:
            parts = ({name: part[name] for name in selected} for part in (got, want, scales))
            record(group, assert_close(*parts, tolerance))
    for name in golden.spec["params_without_grad"]:
        chex.assert_trees_all_equal(trained[name], golden.params[name].astype(trained[name].dtype))


# Float32 may err ten times as much as PyTorch's own float32 run did.
NOISE_FLOORS = 10.0


def assert_float32(golden: Golden, result: Evaluation, record: Record) -> None:
    """Logits, stages and gradients of a float32 run, in units of the fixture's own noise."""
    want = golden.arrays["logits_f64"]
    noise = {"logits": golden.noise("logits")}
    record("logits", assert_close({"logits": result.logits}, {"logits": want}, noise, NOISE_FLOORS))
    # Copies of the input have no noise at all: there the smallest float32 stands for the floor.
    tiny = float(np.finfo(np.float32).tiny)
    entries = golden.spec["activations"]
    record(
        "stages",
        assert_close(
            {
                name: output[:, :16] if output.ndim == 2 else output[:, :4, :16]
                for name, output in result.stages.items()
            },
            {name: golden.arrays[f"act/{name}"] for name in entries},
            {name: max(entry["f32_max_abs"], tiny) for name, entry in entries.items()},
            NOISE_FLOORS,
        ),
    )
    got, want, scales = by_parameter(
        result.gradients, golden, golden.arrays["grad_first8"], golden.arrays["grad_l2"]
    )
    noise = golden.spec["noise_f32_vs_f64"]["grad"]
    for name, scale in scales.items():
        relative = name.endswith(" l2")
        scales[name] = noise["max_rel_l2"] * scale if relative else noise["max_abs"]
    record("gradients", assert_close(got, want, scales, NOISE_FLOORS))


def assert_float32_losses(golden: Golden, losses: np.ndarray, record: Record) -> None:
    """The losses of ten AdamW steps in float32, in units of the fixture's own noise."""
    want = {"": golden.arrays["traj_loss_f64"]}
    noise = {"": golden.noise("traj_loss")}
    record("trajectory", assert_close({"": losses}, want, noise, NOISE_FLOORS))
