"""A loss that is a multiple of the reference's, or gradients that are."""

import dataclasses

import numpy as np

from vit_jax.parity.optimizer_words import digits
from vit_jax.parity.optimizers import Step, optax_step, torch_step
from vit_jax.parity.repair import Found
from vit_jax.parity.result import Diagnosis
from vit_jax.parity.run import Comparison
from vit_jax.parity.values import Expected


def loss_factor(run: Comparison) -> Found | None:
    """A loss, and all of its gradients, that are one multiple of the reference's."""
    reference = run.reference
    if not run.grad:
        return None
    assert reference.loss is not None
    gradients = run.gradients
    norms = [
        (float(np.linalg.norm(gradients.parameters[name])), want.rms * np.sqrt(np.prod(want.shape)))
        for name, want in reference.gradients.items()
        if name in gradients.parameters
    ]
    largest = max(norms, key=lambda pair: pair[1], default=(0.0, 0.0))
    if not largest[0] or not largest[1]:
        return None
    factor = largest[0] / largest[1]
    for exact in (round(factor), 1 / max(round(1 / factor), 1)):
        if exact and abs(factor - exact) <= 1e-9 * exact:
            factor = float(exact)
    if abs(factor - 1) <= 1e-6:
        return None
    scaled = dataclasses.replace(
        gradients,
        loss=gradients.loss / factor,
        parameters={name: array / factor for name, array in gradients.parameters.items()},
        stages={name: array / factor for name, array in gradients.stages.items()},
        image=None if gradients.image is None else gradients.image / factor,
    )
    rows = [row for row in run.gradient_rows(scaled) if row.section != "losses"]
    if any(row.verdict != "noise" for row in rows):
        return None
    is_whole = _is_multiple(reference.loss, gradients.loss, factor)
    is_right = _is_multiple(reference.loss, gradients.loss, 1.0)
    if not is_whole and not is_right:
        return None
    times = f"{digits(factor)} times the reference's"
    text = f"the loss is {times}, and so is every gradient"
    if not is_whole:
        text = f"every gradient is {times}, though the loss is right"
    batch, size = len(reference.images), int(np.prod(reference.stages[""].shape))
    for words, number in (
        (f"the {batch} samples of the batch", batch),
        (f"all {size} outputs", size),
    ):
        if factor == number > 1:
            text += f": as one summed over {words} is of one averaged"
            break
        if number > 1 and factor == 1 / number:
            text += f": as one averaged over {words} is of one summed"
            break
    return Diagnosis("loss_sum", text, _trains(run, factor, is_whole)), "loss", ""


def _is_multiple(want: Expected, got: float, factor: float) -> bool:
    error = want.error(np.full(want.shape, got / factor))
    return error <= 1e-9 * want.rms


def _trains(run: Comparison, factor: float, with_loss: bool) -> bool:
    """Whether training, where it is compared, agrees once the factor is out."""
    if run.trained is None:
        return True
    trainable = run.side.trainable(run.reference)
    assert run.reference.optimizer is not None
    exact = torch_step(run.reference.optimizer, trainable.names)
    if run.transformation is not None:
        exact = optax_step(run.transformation, trainable.unflatten)

    def update(leaves, grads, state, number):
        return exact.update(leaves, [grad / factor for grad in grads], state, number)

    losses, trained = run.side.train(run.reference, Step(exact.init, update))
    rows = run.training_rows(losses / factor if with_loss else losses, trained)
    return all(row.verdict == "noise" for row in rows)
