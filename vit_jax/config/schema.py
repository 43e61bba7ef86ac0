"""The fields of a training run, as typed dataclasses.

Each field states its help text, unit and range once, here; `validate` checks them, and
`python train.py --help` prints them. Annotations are objects, not strings: ml_collections reads
them to parse the command line.
"""

# ruff: noqa: RUF009 -- `_option` and `_group` return dataclasses.field, which the rule cannot see.

import dataclasses
from typing import Annotated, Any

# `Annotated` makes each optional a type of its own, for which the command line has a parser that
# also takes "None" (vit_jax/config/flags.py). To a type checker it is the plain union.
OptionalInt = Annotated[int | None, "an integer or None"]
OptionalFloat = Annotated[float | None, "a number or None"]
OptionalStr = Annotated[str | None, "a string or None"]
OptionalFloats = Annotated[tuple[float, ...] | None, "a tuple of numbers or None"]


@dataclasses.dataclass(frozen=True)
class Limits:
    """The values a field may take: `minimum` and `maximum` belong to them, `above` does not."""

    minimum: int | float | None = None
    above: int | float | None = None
    maximum: int | float | None = None
    below: int | float | None = None
    choices: tuple[str, ...] = ()


def _option(help_text: str, default: Any = dataclasses.MISSING, **limits: Any) -> Any:
    metadata = {"help": help_text, "limits": Limits(**limits)}
    return dataclasses.field(default=default, metadata=metadata)


def _group(kind: type) -> Any:
    return dataclasses.field(default_factory=kind)


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """Which design is trained, and its constructor fields."""

    name: str = _option("a registered model, see `vit-jax models`")
    kwargs: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={
            "help": "constructor fields of the model: --config.model.kwargs.FIELD=VALUE",
            "limits": Limits(),
        },
    )


@dataclasses.dataclass(kw_only=True)
class DataConfig:
    """The images, how they are read, and how they are prepared."""

    source: str = _option("where images come from", choices=("digits", "tfds", "folder"))
    name: OptionalStr = _option("the TFDS name of the set; None or empty: no name", "")
    data_dir: OptionalStr = _option(
        "tfds: the directory that holds prepared sets; folder: the images' root; "
        "None: the source's default",
        None,
    )
    train_split: str = _option("the split to train on", "train")
    validation_split: OptionalStr = _option(
        "the split to validate on; None or empty: none", "validation"
    )
    test_split: OptionalStr = _option(
        "the split to test on once, at the end; None or empty: none", "test"
    )
    num_train_examples: OptionalInt = _option(
        "train on the first n of a seeded permutation; None: all", None, minimum=1
    )
    batch_size: int = _option("examples per update, over all devices and hosts", minimum=1)
    eval_batch_size: int = _option("examples per evaluation step, likewise", 256, minimum=1)
    image_size: OptionalInt = _option(
        "side in pixels after the resize; None: the model's img_size", None, minimum=1
    )
    mean: OptionalFloats = _option(
        "mean of each channel, of pixels in [0, 1]; None: the set's own statistics", None
    )
    std: OptionalFloats = _option(
        "standard deviation of each channel, of pixels in [0, 1]; None: the set's own statistics",
        None,
        above=0,
    )
    rotation_degrees: float = _option(
        "training images turn by an angle uniform in +-this many degrees",
        0.0,
        minimum=0,
        maximum=45,
    )
    horizontal_flip: bool = _option("mirror each training image with probability 1/2", False)
    num_workers: int = _option("loader threads or processes; 0: load in line", 2, minimum=0)
    worker_kind: str = _option(
        "what the loader's workers are", "thread", choices=("thread", "process")
    )


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """The update rule and its learning rate over time."""

    name: str = _option("the update rule", "adamw", choices=("adamw",))
    learning_rate: float = _option("peak learning rate", above=0)
    schedule: str = _option(
        "course of the learning rate after the warm-up, down to min_learning_rate",
        "constant",
        choices=("constant", "cosine", "linear"),
    )
    warmup_epochs: float = _option("epochs (fractions allowed) of linear warm-up", 0.0, minimum=0)
    warmup_learning_rate: float = _option("learning rate at step 0 of a warm-up", 0.0, minimum=0)
    min_learning_rate: float = _option(
        "learning rate at the end of a cosine or linear schedule", 0.0, minimum=0
    )
    weight_decay: float = _option(
        "decoupled weight decay, times the learning rate as in torch.optim.AdamW", 0.0, minimum=0
    )
    decay_mask: str = _option(
        'what decays: "all" parameters, as AdamW(model.parameters()) does, or only "matrices": '
        "parameters that are neither biases, norm scales, tokens nor position embeddings",
        "all",
        choices=("all", "matrices"),
    )
    beta1: float = _option("decay of the first moment, per update", 0.9, minimum=0, below=1)
    beta2: float = _option("decay of the second moment, per update", 0.999, minimum=0, below=1)
    eps: float = _option("added to the root of the second moment", 1e-8, above=0)
    gradient_clip_norm: OptionalFloat = _option(
        "largest global L2 norm of the gradient; None: no clipping", None, above=0
    )


@dataclasses.dataclass(kw_only=True)
class LossConfig:
    """Softmax cross-entropy and what softens it."""

    label_smoothing: float = _option(
        "share of the target spread evenly over all classes", 0.0, minimum=0, below=1
    )


@dataclasses.dataclass(kw_only=True)
class MixConfig:
    """Training examples mixed in pairs, once a batch; loss.label_smoothing goes along."""

    mixup_alpha: float = _option(
        "mixup: shares of two images are drawn from Beta(alpha, alpha); 0: none", 0.0, minimum=0
    )
    cutmix_alpha: float = _option(
        "CutMix: the share of a box that shows another image, likewise; 0: none", 0.0, minimum=0
    )
    probability: float = _option("of a batch to be mixed", 1.0, minimum=0, maximum=1)
    switch_probability: float = _option(
        "of CutMix where there are both, else it is mixup", 0.5, minimum=0, maximum=1
    )


@dataclasses.dataclass(kw_only=True)
class DistillationConfig:
    """A teacher, from whom the second head of a distilled model learns (DeiT, 2012.12877)."""

    kind: str = _option(
        'what is learnt from the teacher: "hard", its predicted class; "soft", its probabilities',
        "none",
        choices=("none", "hard", "soft"),
    )
    teacher: OptionalStr = _option(
        "its weights: a weights file, a checkpoint or a work directory; None or empty: none", ""
    )
    teacher_model: OptionalStr = _option(
        "its registered model; None or empty: that of its work directory", ""
    )
    teacher_kwargs: dict[str, Any] = dataclasses.field(
        default_factory=dict,
        metadata={
            "help": "constructor fields of the teacher beside num_classes, img_size and in_chans, "
            "which are the model's: --config.distillation.teacher_kwargs.FIELD=VALUE",
            "limits": Limits(),
        },
    )
    alpha: float = _option(
        "weight of the teacher's loss; 1 - alpha is that of the labels'", 0.5, minimum=0, maximum=1
    )
    temperature: float = _option(
        "soft: both sides' logits are divided by it, the loss is multiplied by its square",
        1.0,
        above=0,
    )


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """When the validation split is evaluated."""

    every_epochs: int = _option("epochs between validations; the last is always one", 1, minimum=1)


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = _option("updates between checkpoints", 1000, minimum=1)
    keep: int = _option("how many of the latest checkpoints stay", 2, minimum=1)
    keep_best: bool = _option("also keep the one of the best validation top-1", True)


@dataclasses.dataclass(kw_only=True)
class LogConfig:
    """What a run reports, and how often."""

    every_steps: int = _option("updates between train rows of metrics.jsonl", 50, minimum=1)
    tensorboard: bool = _option("write TensorBoard event files", True)
    progress: str = _option(
        'on the terminal; "auto": a live bar on a terminal, plain lines elsewhere',
        "auto",
        choices=("auto", "plain", "none"),
    )


@dataclasses.dataclass(kw_only=True)
class MeshConfig:
    """The device mesh: data * fsdp is the number of devices."""

    data: int = _option("devices along the batch; -1: all that fsdp leaves", -1)
    fsdp: int = _option(
        "devices that share one copy of the parameters; -1: all that data leaves", 1, minimum=-1
    )


@dataclasses.dataclass(kw_only=True)
class TrainConfig:
    """All that decides a training run."""

    seed: int = _option(
        "seed of initialisation, order, augmentation and dropout", 0, minimum=0, maximum=2**32 - 1
    )
    num_epochs: int = _option("passes over the training split", minimum=1)
    init_from: OptionalStr = _option(
        "start from these weights: a weights file, a checkpoint or a work directory; "
        "None or empty: none",
        "",
    )
    init_weights: str = _option(
        "init_from: the raw weights, or the moving average of them that stands beside",
        "raw",
        choices=("raw", "ema"),
    )
    init_head: str = _option(
        'init_from: "load" its head, or begin with a "fresh" one, of any number of classes',
        "load",
        choices=("load", "fresh"),
    )
    init_resize: str = _option(
        "init_from: how its position embeddings become those of another image size; "
        '"none": they are of this one; "source": as timm does it, T2T-ViT\'s computed anew',
        "none",
        choices=("none", "source", "timm", "bilinear_antialias", "bicubic", "bilinear", "google"),
    )
    unbuilt: OptionalStr = _option(
        "methods of a recipe's source that are not built yet: while any is named the run is "
        "refused; None or empty: train without them",
        "",
    )
    accumulation_steps: int = _option(
        "parts that a batch is computed in, one after another: the same update, less memory",
        1,
        minimum=1,
    )
    parallel: str = _option("how the step is spread over devices", "jit", choices=("jit", "pmap"))
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig = _group(LossConfig)
    mix: MixConfig = _group(MixConfig)
    distillation: DistillationConfig = _group(DistillationConfig)
    evaluation: EvaluationConfig = _group(EvaluationConfig)
    checkpoint: CheckpointConfig = _group(CheckpointConfig)
    log: LogConfig = _group(LogConfig)
    mesh: MeshConfig = _group(MeshConfig)


# A run may be resumed with other values of these fields and of these groups: they move work
# about, keep more or less of it, or report it. (Another mesh and other parts of a batch add up in
# another order: the update is the same but for rounding. All else leaves every bit as it was.)
RESUMABLE_FIELDS = frozenset(
    {
        "accumulation_steps",
        "checkpoint",
        "data.num_workers",
        "data.worker_kind",
        "log",
        "mesh",
        "parallel",
    }
)
