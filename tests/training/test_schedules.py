"""Schedules at their corners, and beside the formulas of timm's at every epoch."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.config import EmaConfig, OptimizerConfig
from vit_jax.training.ema import update_average
from vit_jax.training.optimizer import make_optimizer
from vit_jax.training.schedules import learning_rate_of_update, make_schedule


def rates(updates, num_epochs=4, **fields) -> list[float]:
    config = OptimizerConfig(learning_rate=1.0, **fields)
    schedule = make_schedule(config, steps_per_epoch=10, num_epochs=num_epochs)
    return [learning_rate_of_update(schedule, update) for update in updates]


def test_constant():
    assert rates([1, 40]) == [1, 1]


def test_warm_up_is_linear_and_in_epochs():
    warm = rates([1, 2, 6, 11, 12], warmup_epochs=1.0, warmup_learning_rate=0.5)
    assert warm == pytest.approx([0.5, 0.55, 0.75, 1, 1])


def test_cosine_falls_to_the_minimum():
    fall = rates([1, 21, 41], schedule="cosine", min_learning_rate=0.2)
    assert fall == pytest.approx([1, 0.6, 0.2])


def test_linear_after_warm_up():
    fall = rates([11, 26, 41], schedule="linear", warmup_epochs=1.0)
    assert fall == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_cooldown_is_at_the_minimum_and_takes_from_the_fall(schedule):
    fields = {"schedule": schedule, "warmup_epochs": 1.0, "min_learning_rate": 0.2}
    fall = rates([11, 16, 21, 31, 40], cooldown_epochs=2.0, **fields)
    assert fall == pytest.approx([1, 0.6, 0.2, 0.2, 0.2])


def test_steps_count_from_the_start_and_stop_at_the_minimum():
    fields = {"schedule": "step", "decay_epochs": 1.5, "decay_rate": 0.5}
    assert rates([1, 15, 16, 30, 31, 40], **fields) == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25])
    floored = rates([1, 16, 31], min_learning_rate=0.3, **fields)
    assert floored == pytest.approx([1, 0.5, 0.3])
    # The warm-up covers the first decay.
    warm = rates([1, 11, 21, 31], warmup_epochs=2.0, **fields)
    assert warm == pytest.approx([0, 0.5, 0.5, 0.25])


@pytest.mark.parametrize("unit", ["step", "epoch"])
def test_a_restart_begins_anew_and_changes_nothing_before(unit):
    fields = {"schedule": "cosine", "warmup_epochs": 1.0, "schedule_unit": unit}
    first, second = (rates(range(1, 10 * n + 1), num_epochs=n, **fields) for n in (4, 2))
    whole = rates(range(1, 61), num_epochs=6, restarts=(4,), **fields)
    assert whole == first + second


# timm 0.3.4's schedulers with t_mul 1, decay_rate 1, cycle_limit 1 and no noise, as documented in
# `timm/scheduler`: t counts epochs, and `warmup_prefix` is off.
def timm_warmup(t, lr, warmup_t, warmup_lr):
    return warmup_lr + t * (lr - warmup_lr) / warmup_t if t < warmup_t else None


def timm_cosine(t, lr, t_initial, lr_min):
    return (
        lr_min + 0.5 * (lr - lr_min) * (1 + math.cos(math.pi * t / t_initial))
        if t < t_initial
        else lr_min
    )


def timm_step(t, lr, decay_t, decay_rate):
    return lr * decay_rate ** (t // decay_t)


LR, FLOOR, WARM, EPOCHS, COOLDOWN, DECAY = 5e-4, 1e-5, 1e-6, 300, 10, 0.05
T2T = OptimizerConfig(  # the release's recipe of t2t_vit_14
    learning_rate=LR,
    schedule="cosine",
    schedule_unit="epoch",
    warmup_epochs=10.0,
    warmup_learning_rate=WARM,
    min_learning_rate=FLOOR,
    cooldown_epochs=float(COOLDOWN),
    weight_decay=DECAY,
)


def timm_t2t(t: int) -> float:
    warm = timm_warmup(t, LR, 10, WARM)
    return timm_cosine(t, LR, EPOCHS, FLOOR) if warm is None else warm


@pytest.mark.parametrize("x64_too", [False, True])
def test_the_t2t_recipe_is_timms_at_every_epoch(x64_too):
    steps = 5
    with jax.enable_x64(x64_too):
        schedule = make_schedule(T2T, steps, EPOCHS + COOLDOWN)
        for epoch in range(EPOCHS + COOLDOWN):
            for update in (epoch * steps + 1, (epoch + 1) * steps):
                found = learning_rate_of_update(schedule, update)
                assert found == pytest.approx(timm_t2t(epoch), rel=1e-7 if not x64_too else 1e-14)


def test_by_epoch_the_others_are_timms():
    for t, found in enumerate(
        rates(
            range(1, 401, 10),
            40,
            schedule="step",
            schedule_unit="epoch",
            warmup_epochs=3.0,
            decay_epochs=15.0,
            decay_rate=0.3,
        )
    ):
        warm = timm_warmup(t, 1, 3, 0)
        assert found == pytest.approx(timm_step(t, 1, 15, 0.3) if warm is None else warm, rel=1e-7)
    by_epoch = {"schedule_unit": "epoch", "warmup_epochs": 1.0}
    assert rates([1, 10, 11, 40], **by_epoch) == [0, 0, 1, 1]
    fall = rates([1, 11, 21, 40], schedule="linear", min_learning_rate=0.2, **by_epoch)
    assert fall == pytest.approx([0, 0.8, 0.6, 0.4])


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-7), ("float64", 1e-14)])
@pytest.mark.parametrize(("decay", "warmup"), [(0.99996, False), (0.99, False), (0.99996, True)])
def test_weight_decay_and_average_of_the_t2t_recipe_are_timms_at_every_epoch(
    dtype, tolerance, decay, warmup, record_property
):
    """As timm 0.3.4 has them: p (1 - lr wd), and `ModelEma`'s decay ema + (1 - decay) p.

    One update an epoch, without a gradient. In float64 the whole way is the same; in float32 each
    epoch starts at the formulas' numbers: an update of 2e-5 of a parameter is rounded the same way
    again and again.
    """
    with jax.enable_x64(dtype == "float64"):
        config = EmaConfig(decay=decay, warmup=warmup)
        optimizer = make_optimizer(T2T, make_schedule(T2T, 1, EPOCHS + COOLDOWN))

        @jax.jit
        def update(params, average, state, number):
            updates, state = optimizer.update(jnp.zeros_like(params), state, params)
            params = optax.apply_updates(params, updates)
            return params, update_average(config, average, params, number), state

        # Unlike each other, for there to be something to average.
        params, average = np.random.default_rng(0).uniform(-1, 1, size=(2, 100)).astype(dtype)
        ours = (jnp.asarray(params), jnp.asarray(average))
        state, worst = optimizer.init(ours[0]), 0.0
        for epoch in range(EPOCHS + COOLDOWN):
            *ours, state = update(*ours, state, jnp.int32(epoch + 1))
            rate = 1 - timm_t2t(epoch) * DECAY
            now = min(decay, (2 + epoch) / (11 + epoch)) if warmup else decay
            params = np.float64(params) * rate
            average = now * np.float64(average) + (1 - now) * params
            for found, wanted in zip(ours, (params, average), strict=True):
                worst = max(worst, np.abs(np.float64(found) - wanted).max())
            if dtype == "float32":
                params, average = params.astype(dtype), average.astype(dtype)
                ours = (jnp.asarray(params), jnp.asarray(average))
    record_property("worst", float(worst))
    assert worst < tolerance
