"""Distillation (DeiT, 2012.12877): the second head of a distilled model learns from a teacher.

The teacher sees the images that the model sees, augmented and mixed, in eval mode. Its weights are
an argument of the train step: they are in no state and no checkpoint, and are read again when a run
goes on.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding
from jaxtyping import Array, Float

from vit_jax.config import DistillationConfig, TrainConfig
from vit_jax.layers.forms import PLAIN, AttentionForm, eval_graph
from vit_jax.models.base import VisionModel
from vit_jax.models.registry import abstract_model, model_fields
from vit_jax.models.spec import ModelSpec
from vit_jax.storage import run_path
from vit_jax.training.losses import Logits, Targets, cross_entropy, mean_of_heads, wide
from vit_jax.training.mesh import place
from vit_jax.training.start import check_init_from, load_initial_weights
from vit_jax.training.state import Arrays
from vit_jax.weights.run_folder import HUB_PREFIX


def soft_teaching(
    logits: Float[Array, "batch classes"],
    teacher_logits: Float[Array, "batch classes"],
    temperature: float,
) -> Float[Array, "batch"]:
    """T^2 KL(teacher / T || logits / T) of each example, equation 2 of 2012.12877.

    Their mean is `T ** 2 * torch.nn.functional.kl_div(..., reduction="batchmean")`. (DeiT's
    losses.py divides by the number of classes too, which the paper does not: at 1000 classes it is
    all but nothing.)
    """
    ours, theirs = (
        jax.nn.log_softmax(wide(of) / temperature, axis=-1) for of in (logits, teacher_logits)
    )
    return temperature**2 * (jnp.exp(theirs) * (theirs - ours)).sum(axis=-1)


def distillation_loss(
    logits: Logits,
    targets: Targets,
    teacher_logits: Float[Array, "batch classes"],
    config: DistillationConfig,
    label_smoothing: float = 0.0,
) -> tuple[Float[Array, "batch"], Float[Array, "batch classes"]]:
    """Returns the loss of each example and the logits that its prediction is read from.

    (1 - alpha) times the cross entropy of the class head with the targets, plus alpha times the
    distillation head's: with the class that the teacher predicts ("hard", equation 3), or see
    `soft_teaching`. The prediction is that of both heads' average, as in eval mode.

    Args:
      logits: of the class head and of the distillation head.
      targets: see `losses.cross_entropy`.
      teacher_logits: no gradient passes through them.
      config: kind, alpha and temperature.
      label_smoothing: of labels; the teacher's are not smoothed.
    """
    assert isinstance(logits, tuple)
    of_class, of_teacher = logits
    teacher_logits = jax.lax.stop_gradient(teacher_logits)
    if config.kind == "hard":
        taught = cross_entropy(of_teacher, jnp.argmax(teacher_logits, axis=-1))
    else:
        taught = soft_teaching(of_teacher, teacher_logits, config.temperature)
    labelled = cross_entropy(of_class, targets, label_smoothing)
    return (1 - config.alpha) * labelled + config.alpha * taught, mean_of_heads(logits)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """A trained model that is asked and not trained.

    Attributes:
      config: the distillation.
      graph: the model's static half, in eval mode, in the form that suits the devices.
      template: shapes and types of its arrays.
      name, fields: of the registered model.
      student: the model that learns: how its run prepares images, and its classes.
    """

    config: DistillationConfig
    graph: nnx.GraphDef
    template: Arrays
    name: str
    fields: dict[str, Any]
    student: ModelSpec

    @functools.cached_property
    def weights(self) -> tuple[Arrays, str]:
        """Its arrays, on one device of this process, and what was read, in words. Read once.

        Raises:
          ValueError: they are not there, are damaged, or do not fit the model.
        """
        model = abstract_model(self.name, **self.fields)
        said = load_initial_weights(
            model, self.config.teacher or "", self.student, field="distillation.teacher"
        )
        return nnx.to_pure_dict(nnx.state(model)), said

    def logits(self, arrays: Arrays, images: jax.Array) -> jax.Array:
        """What it says of images, (B, num_classes)."""
        return nnx.merge(self.graph, arrays)(images)


def make_teacher(
    config: TrainConfig,
    model: VisionModel[Any],
    platform: str,
    attention: AttentionForm = PLAIN,
) -> Teacher | None:
    """The teacher of a run, its weights not yet read; None with `kind="none"`.

    Args:
      config: the run.
      model: that learns, which may be abstract.
      platform: of the devices, as JAX names it; attention: their form of it.

    Raises:
      ValueError: a model without a second head, a teacher that is not registered, or one that takes
        other images or tells other classes.
    """
    distillation = config.distillation
    if distillation.kind == "none":
        return None
    if len(model.heads) < 2:
        raise ValueError(
            f'config.distillation.kind="{distillation.kind}" teaches the second head of a '
            f"distilled model, which {config.model.name} has not: set "
            "config.model.kwargs.distilled=True (vit_*), or choose a deit_*distilled* model"
        )
    name = distillation.teacher_model or ""
    fields: dict[str, Any] = {}
    if not name:
        # Here and not above: most runs read no weights of others, whose formats are 20 modules.
        from vit_jax.weights.load import read_stated_model

        source = distillation.teacher or ""
        check_init_from(source, "distillation.teacher")
        stated = read_stated_model(source if source.startswith(HUB_PREFIX) else run_path(source))
        if stated.name is None or stated.fields is None:
            raise ValueError(
                "config.distillation.teacher_model: wanted the registered model of the teacher's "
                f"weights {source!r}, which do not state it"
            )
        name, fields = stated.name, stated.fields
    known = model_fields(name)
    sizes = {
        "num_classes": model.num_classes,
        "img_size": model.input_size,
        "in_chans": model.in_chans,
    }
    fields = {key: value for key, value in sizes.items() if key in known} | fields
    fields |= distillation.teacher_kwargs
    unknown = sorted(set(fields) - set(known))
    if unknown:
        raise ValueError(
            f"config.distillation.teacher_kwargs.{unknown[0]}: {name} has no such field; it takes: "
            f"{', '.join(sorted(known))}"
        )
    images = jax.ShapeDtypeStruct((1, *model.input_size, model.in_chans), jnp.float32)
    try:
        teacher = abstract_model(name, **fields)
        teacher.eval()
        logits = nnx.eval_shape(lambda m, x: m(x), teacher, images)
    except ValueError as error:
        raise ValueError(
            f"config.distillation.teacher_kwargs: the teacher {name} does not take the model's "
            f"images: {error}"
        ) from error
    if logits.shape != (1, model.num_classes):
        raise ValueError(
            f"the teacher {name} gives logits {logits.shape[1:]}, and the model has "
            f"{model.num_classes} classes: they must be the same classes"
        )
    template = nnx.to_pure_dict(nnx.state(teacher))
    graph = eval_graph(teacher, platform, attention)
    return Teacher(distillation, graph, template, name, fields, model.spec)


class TaughtStep:
    """A step with the teacher's arrays, its last argument, filled in: a whole copy on each device.

    Args:
      step: (state, batch, ..., the teacher's arrays).
      teacher: its weights are read at the first call.
      sharding: where the arrays lie.
    """

    def __init__(self, step: Any, teacher: Teacher, sharding: NamedSharding) -> None:
        self.step, self.teacher, self.sharding = step, teacher, sharding

    @functools.cached_property
    def _arrays(self) -> Arrays:
        arrays, _ = self.teacher.weights
        return place(arrays, jax.tree.map(lambda _: self.sharding, arrays))

    def __call__(self, *arguments: Any) -> Any:
        return self.step(*arguments, self._arrays)

    def trace(self, state: Any, batch: Any) -> Any:
        """As that of `jax.jit`: nothing is read."""
        teacher = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=self.sharding),
            self.teacher.template,
        )
        return self.step.trace(state, batch, teacher)
