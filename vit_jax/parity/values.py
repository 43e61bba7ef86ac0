"""What is compared: the values that a reference gave, whole or in part, and their noise.

Every array is named as in the model's state dict and laid out as in PyTorch.
"""

import dataclasses
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol, cast

import numpy as np

from vit_jax.inspect.stages import Outputs
from vit_jax.parity.inputs import Inputs

OPTIMIZER_NAMES = ("adamw", "adam", "sgd", "rmsprop")
_GROUP_SETTINGS = {"weight_decay", "learning_rate_factor"}


def rms(array: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


class Expected(Protocol):
    """A value of the reference in float64.

    Attributes:
      shape: of the whole array.
      rms: of the whole array.
      noise: largest difference between the reference's own float32 and float64 run.
      slack: what float64 may differ by beyond its rounding, see `held`.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def rms(self) -> float: ...

    @property
    def noise(self) -> float: ...

    @property
    def slack(self) -> float: ...

    def error(self, got: np.ndarray) -> float:
        """Largest difference from an array of `shape`; infinite where that has none to compare."""
        ...


@dataclasses.dataclass(frozen=True)
class Whole:
    """All of an array."""

    array: np.ndarray
    noise: float
    slack: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def rms(self) -> float:
        return rms(self.array)

    @staticmethod
    def size(difference: np.ndarray) -> float:
        """Of the difference of two arrays: its largest number."""
        return float(np.max(np.abs(difference), initial=0.0))

    def error(self, got: np.ndarray) -> float:
        difference = np.asarray(got, np.float64) - self.array
        return self.size(difference) if np.isfinite(difference).all() else np.inf


class Averaged(Whole):
    """All of an array that is compared in a narrow type: by the rms of differences, noise too.

    Of few digits a value may be rounded over the kink of a ReLU, and its gradient is another one
    then; and the largest of many roundings says little of the rest.
    """

    @staticmethod
    def size(difference: np.ndarray) -> float:
        return rms(difference)


@dataclasses.dataclass(frozen=True)
class Reference:
    """What a PyTorch model answered.

    Attributes:
      name: what it is, for the report.
      weights: its state dict under the names of the JAX model, in the order in which the weights
        stand there; empty where they are not known.
      images: what it was given, (B, C, H, W), or as it is where it is no image; whole numbers, such
        as ids of tokens, have no gradient. Several inputs are `Inputs`, in that layout.
      labels: classes of the loss; None where the output is no (B, classes) and the loss is
        `mean(output * direction)`.
      direction: see `labels`; None where there are labels.
      stages: value by stage, in the order in which the reference came to them; see
        `inspect.stages`. "" is the model's answer: its logits.
      loss: the mean cross entropy of the logits, or see `labels`; None where not asked for.
      gradients: of the loss, by parameter; those that PyTorch gave none stand in `untrained`.
      stage_gradients: of the loss, by stage left; of several arrays by the answer.
      image_gradient: of the loss.
      input_gradients: of the loss, of several inputs by name.
      losses: before each optimizer step and after the last.
      trained: parameters after the steps.
      untrained: names of trainable parameters without a gradient.
      optimizer: settings of the steps.
      outputs: the names of the arrays that a module gives, where that is no lone array.
      later: of stages that `names` gave a name that another one had, what they were.
      own_loss: of the user's, for the JAX model; None: see `labels`.
      islands: where it computes in narrower types, by module; its values here have these widened.
      refusal: why they have not; "" where they have, or there are none.
      moved: from the names of the arrays that the model holds to the values with the last digit of
        all other rounded constants moved, and to the names of these; None where it cannot be run.
      is_train: it was run in train mode, without dropout.
      statistics: in train mode, the buffers that one run changes, after it. In `trained` they stand
        as they are after the runs of all steps and of the last loss.
      dropped: the modules whose dropout was left out.
      batch_norms: whether each batch normalisation was in train mode when it was handed over.
      is_float32: it could be run in float32 alone: its values are those, its noise an estimate.
      rounded: from the name of a narrow type to the same of the module with its parameters and
        inputs rounded to it, with the noise of its run in that type; None where it cannot be run.
      live: of a module that can be run again, see `dissect.program.Live`.
    """

    name: str
    weights: Mapping[str, np.ndarray]
    images: np.ndarray | Inputs
    labels: np.ndarray | None
    direction: np.ndarray | None
    stages: Mapping[str, Expected]
    loss: Expected | None = None
    gradients: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    stage_gradients: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    image_gradient: Expected | None = None
    losses: Expected | None = None
    trained: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    untrained: frozenset[str] = frozenset()
    optimizer: "OptimizerSpec | None" = None
    outputs: Mapping[str, Outputs] = dataclasses.field(default_factory=dict)
    islands: Mapping[str, frozenset[str]] = dataclasses.field(default_factory=dict)
    refusal: str = ""
    moved: "Callable[[Collection[str]], tuple[Reference, list[str]]] | None" = None
    is_float32: bool = False
    is_train: bool = False
    statistics: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    batch_norms: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    input_gradients: Mapping[str, Expected] = dataclasses.field(default_factory=dict)
    later: Mapping[str, str] = dataclasses.field(default_factory=dict)
    own_loss: Callable[[Any], Any] | None = None
    rounded: "Callable[[str], Reference] | None" = None
    live: Any = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def trainable(self) -> frozenset[str]:
        """The names of parameters: of a tied one the only one that PyTorch gives a gradient."""
        return self.untrained.union(self.gradients)


@dataclasses.dataclass(frozen=True)
class OptimizerSpec:
    """The steps of training that are compared: one of PyTorch's optimizers and its settings.

    Attributes:
      name: "adamw", "adam" (its decay is added to the gradient), "sgd" or "rmsprop", of
        torch.optim.
      steps: how many.
      learning_rate: of every step; or a tuple with the rate of each; or a function of the number of
        steps done, such as an optax schedule, which is asked here and kept as a tuple.
      weight_decay: on every parameter that has a gradient.
      betas: of Adam; `betas[0]` is the momentum of SGD and RMSprop, `betas[1]` RMSprop's alpha.
      eps: of all but SGD.
      nesterov, dampening: of SGD.
      clip_norm: gradients are clipped as torch.nn.utils.clip_grad_norm_ does.
      clip_value: gradients are clipped as torch.nn.utils.clip_grad_value_ does.
      groups: pairs of a regular expression and settings: "weight_decay" in the place of that above,
        "learning_rate_factor" on the rate. A parameter is in the first group whose expression is
        found in its name, as the report has it.

    Raises:
      ValueError: settings that are none.
    """

    name: str = "adamw"
    steps: int = 10
    learning_rate: float | tuple[float, ...] | Callable[[Any], Any] = 1e-3
    weight_decay: float = 0.05
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    nesterov: bool = False
    dampening: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None
    groups: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if self.name not in OPTIMIZER_NAMES:
            *names, last = (f'"{name}"' for name in OPTIMIZER_NAMES)
            raise ValueError(f"an optimizer is {', '.join(names)} or {last}, got {self.name!r}")
        if self.steps < 1:
            raise ValueError(f"wanted at least one optimizer step, got {self.steps}")
        if not isinstance(self.learning_rate, int | float):
            object.__setattr__(self, "learning_rate", self._asked_rates())
        if self.name != "sgd" and (self.nesterov or self.dampening):
            raise ValueError(f"nesterov and dampening are SGD's: {self.name} has neither")
        if self.nesterov and (self.betas[0] <= 0 or self.dampening):
            raise ValueError("nesterov: wanted a momentum (betas[0]) and no dampening, as PyTorch")
        if self.clip_norm is not None and self.clip_value is not None:
            raise ValueError("wanted clip_norm or clip_value, got both")
        for field in ("clip_norm", "clip_value"):
            if (most := getattr(self, field)) is not None and not most > 0:
                raise ValueError(f"{field}: wanted a number above 0, got {most!r}")
        object.__setattr__(self, "groups", tuple(map(_group, self.groups)))

    def _asked_rates(self) -> tuple[float, ...]:
        given = self.learning_rate
        try:
            if callable(given):
                import jax
                import jax.numpy as jnp

                # As optax calls it in a float64 run: schedules of an int32 are float32 even there.
                with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
                    counts = [jnp.asarray(step, jnp.int32) for step in range(self.steps)]
                    rates = tuple(float(given(count)) for count in counts)
            else:
                rates = tuple(float(rate) for rate in cast(Any, given))
        except (TypeError, ValueError) as error:
            raise ValueError(
                "learning_rate: wanted a number, one for each step, or a function of the number of "
                f"steps done, got {given!r} ({error})"
            ) from error
        if len(rates) != self.steps:
            raise ValueError(
                f"learning_rate: wanted a rate for each of the {self.steps} steps, got {len(rates)}"
            )
        return rates

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of each step."""
        given = self.learning_rate
        return given if isinstance(given, tuple) else (cast(float, given),) * self.steps

    @property
    def reach(self) -> float:
        """How far the steps may carry a parameter whatever its gradient; infinite for SGD."""
        factors = [dict(settings).get("learning_rate_factor", 1.0) for _, settings in self.groups]
        total = sum(map(abs, self.rates)) * max([1.0, *factors])
        if self.name == "rmsprop":
            return total / (1 - self.betas[1]) ** 0.5 / (1 - self.betas[0])
        return float("inf") if self.name == "sgd" else total

    def settings_of(self, name: str) -> tuple[float, float]:
        """The weight decay of a parameter, and the factor on its learning rate."""
        for pattern, settings in self.groups:
            if re.search(pattern, name):
                own = dict(settings)
                return own.get("weight_decay", self.weight_decay), own.get(
                    "learning_rate_factor", 1.0
                )
        return self.weight_decay, 1.0


def _group(given: Any) -> tuple[str, tuple[tuple[str, float], ...]]:
    """A group as it is kept: hashable."""
    try:
        pattern, settings = given
        re.compile(pattern)
        own = {str(key): float(value) for key, value in dict(settings).items()}
    except (TypeError, ValueError, re.error) as error:
        raise ValueError(
            f"groups: wanted pairs of a regular expression and settings, got {given!r} ({error})"
        ) from error
    unknown = own.keys() - _GROUP_SETTINGS
    if unknown:
        raise ValueError(
            f"groups: wanted {' and '.join(sorted(_GROUP_SETTINGS))}, got "
            f"{', '.join(sorted(unknown))}"
        )
    return pattern, tuple(sorted(own.items()))
