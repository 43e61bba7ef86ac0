"""The fields of a training run, as typed dataclasses.

Each field states its help text, unit and range once, here; `validate` checks them, and
`python train.py --help` prints them. Annotations are objects, not strings: the command
line is parsed by them.
"""

# ruff: noqa: RUF009 -- `_option` and `_group` return dataclasses.field, which the rule cannot see.

import dataclasses
from typing import Annotated, Any

# `Annotated` tells tuples of strings from tuples of numbers. To a type checker it is the union.
OptionalBool = Annotated[bool | None, "a bool or None"]
OptionalInt = Annotated[int | None, "an integer or None"]
OptionalFloat = Annotated[float | None, "a number or None"]
OptionalStr = Annotated[str | None, "a string or None"]
OptionalFloats = Annotated[tuple[float, ...] | None, "a tuple of numbers or None"]
OptionalStrs = Annotated[tuple[str, ...] | None, "a tuple of strings or None"]


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

    source: str = _option(
        'where images come from; "own": from the caller, as data= of training.train',
        choices=("digits", "tfds", "folder", "own"),
    )
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
    labels_file: OptionalStr = _option(
        "folder: a CSV file of the labels, with the columns file and label, and maybe split; "
        "None or empty: each folder is a class",
        "",
    )
    sampling: str = _option(
        '"shuffled": each epoch shows every training image once; "balanced": it shows every class '
        "equally often, the images of a rare one repeatedly",
        "shuffled",
        choices=("shuffled", "balanced"),
    )
    exclude: OptionalStrs = _option(
        "folder: images that are left out, such as damaged ones: their paths from data_dir; "
        "None: none",
        None,
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
    padding_crop: int = _option(
        "pad training images with so many black pixels on each side and crop at random back to "
        "their size; 0: not",
        0,
        minimum=0,
        maximum=2**15,
    )
    color_jitter: float = _option(
        "brightness, contrast and saturation of training images change by factors of 1 +- up to "
        "this; 0: not",
        0.0,
        minimum=0,
    )
    rand_augment: OptionalStr = _option(
        "RandAugment of training images in timm's words, such as rand-m9-mstd0.5-inc1; "
        "None or empty: none",
        None,
    )
    random_erasing: float = _option(
        "probability that a training image loses a random rectangle", 0.0, minimum=0, maximum=1
    )
    random_erasing_mode: str = _option(
        'what the rectangle gets: "const", the mean colour; "rand", a random colour; "pixel", '
        "noise",
        "pixel",
        choices=("const", "rand", "pixel"),
    )
    random_resized_crop: bool = _option(
        "train on a random crop of each image, resized (torchvision's RandomResizedCrop)", False
    )
    crop_scale: tuple[float, ...] = _option(
        "random_resized_crop: smallest and largest share of the image's area",
        (0.08, 1.0),
        above=0,
        maximum=1,
    )
    crop_ratio: tuple[float, ...] = _option(
        "random_resized_crop: smallest and largest width / height", (0.75, 1.3333), above=0
    )
    interpolation: str = _option(
        "kernel of random_resized_crop, antialiased there, and of rand_augment's geometric "
        "operations; random: each image draws one of the two",
        "bilinear",
        choices=("bilinear", "bicubic", "random"),
    )
    eval_crop_fraction: OptionalFloat = _option(
        "images of varying size: side of the evaluated central crop over the side of the resized "
        "image; None: the model's own",
        None,
        above=0,
        maximum=1,
    )
    eval_interpolation: str = _option(
        "images of varying size: kernel of the evaluation's resize",
        "bilinear",
        choices=("bilinear", "bicubic"),
    )
    repeated_augmentation: int = _option(
        "times that an image of an epoch appears in it, each augmented anew; an epoch stays as "
        "long: with 3 it shows a third of the images",
        1,
        minimum=1,
    )
    num_workers: int = _option("loader threads or processes; 0: load in line", 2, minimum=0)
    worker_kind: str = _option(
        "what the loader's workers are", "thread", choices=("thread", "process")
    )
    on_device: OptionalBool = _option(
        "images for training and validation are read once and live on each device, from which the "
        "loader's indices choose a batch; None: where they share a size and fit, and not on CPUs",
        None,
    )


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """The update rule and its learning rate over time."""

    name: str = _option(
        'the update rule: "adamw", "sgd" (with momentum, as torch.optim.SGD), "lamb" (a trust '
        'ratio for every parameter, as in its paper) or "lion"',
        "adamw",
        choices=("adamw", "sgd", "lamb", "lion"),
    )
    learning_rate: float = _option("peak learning rate", above=0)
    schedule: str = _option(
        "course of the learning rate after the warm-up: down to min_learning_rate along a half "
        'cosine or a line, or in steps ("step": times decay_rate every decay_epochs)',
        "constant",
        choices=("constant", "cosine", "linear", "step"),
    )
    schedule_unit: str = _option(
        '"step": the learning rate follows the updates, and a cosine or line begins after the '
        'warm-up; "epoch": it is constant within an epoch, and a cosine or line spans the warm-up '
        "too, as timm's schedulers do",
        "step",
        choices=("step", "epoch"),
    )
    warmup_epochs: float = _option("epochs (fractions allowed) of linear warm-up", 0.0, minimum=0)
    warmup_learning_rate: float = _option("learning rate at step 0 of a warm-up", 0.0, minimum=0)
    min_learning_rate: float = _option(
        "learning rate at the end of a cosine or linear schedule, and the least of a step schedule",
        0.0,
        minimum=0,
    )
    cooldown_epochs: float = _option(
        "epochs at min_learning_rate at the end of a cosine or linear schedule; num_epochs counts "
        "them too: timm's 300 epochs and 10 of cooldown are num_epochs 310 and cooldown_epochs 10",
        0.0,
        minimum=0,
    )
    restarts: OptionalFloats = _option(
        "epochs at which the schedule begins anew, warm-up included: it ends at each of them and "
        "at num_epochs; None: none",
        None,
        above=0,
    )
    decay_epochs: float = _option(
        "schedule step: epochs between two decays, counted from the run's start", 30.0, above=0
    )
    decay_rate: float = _option(
        "schedule step: what the learning rate is multiplied with", 0.1, above=0, maximum=1
    )
    weight_decay: float = _option(
        "decoupled weight decay, times the learning rate as in torch.optim.AdamW; with sgd an L2 "
        "penalty, added to the gradient before the momentum as in torch.optim.SGD",
        0.0,
        minimum=0,
    )
    decay_mask: str = _option(
        'what decays: "all" parameters, as AdamW(model.parameters()) does, or only "matrices": '
        "parameters that are neither biases, norm scales, tokens nor position embeddings; "
        '"deit": those and the distillation token, which DeiT\'s release does not exempt',
        "all",
        choices=("all", "matrices", "deit"),
    )
    layer_decay: float = _option(
        "layer-wise learning rate decay: with L layers, times layer_decay ** (L + 1 - i) for the "
        "i-th of them, i being 0 for what stands before them and L + 1 for what comes after; "
        "1: none",
        1.0,
        above=0,
        maximum=1,
    )
    backbone_factor: float = _option(
        "learning rate of all but the last linear layer, over its own", 1.0, above=0
    )
    frozen: OptionalStrs = _option(
        "parameters that are not trained: their names in state_dict, beginnings of these up to a "
        'dot, or globs such as blocks.?.mlp.*; "backbone" is all but the last linear layer, which '
        "makes a linear probe; None: all are trained",
        None,
    )
    beta1: float = _option(
        "adamw, lamb, lion: decay of the first moment, per update", 0.9, minimum=0, below=1
    )
    beta2: float = _option(
        "adamw, lamb: decay of the second moment, per update; lion: of its momentum, .99 in its "
        "paper",
        0.999,
        minimum=0,
        below=1,
    )
    eps: float = _option("adamw, lamb: added to the root of the second moment", 1e-8, above=0)
    momentum: float = _option("sgd: decay of the momentum, per update", 0.9, minimum=0, below=1)
    nesterov: bool = _option("sgd: Nesterov's momentum", False)
    gradient_clip_norm: OptionalFloat = _option(
        "largest global L2 norm of the gradient; None: no clipping", None, above=0
    )


# What the labels are for each loss.kind: one class an image, any number of them, or numbers.
TARGET_OF_LOSS = {
    "cross_entropy": "classification",
    "binary_cross_entropy": "multilabel",
    "mse": "regression",
    "l1": "regression",
    "reconstruction": "classification",
}


@dataclasses.dataclass(kw_only=True)
class LossConfig:
    """What is minimised, and what the labels are with it."""

    kind: str = _option(
        '"cross_entropy" of the classes; "binary_cross_entropy" of each label by itself: an image '
        'may have any number of them; "mse" or "l1": of numbers, num_classes of them an image; '
        '"reconstruction": of hidden patches, the pretraining of a model with a decoder '
        "(mae_vit_*), which needs no labels",
        "cross_entropy",
        choices=tuple(TARGET_OF_LOSS),
    )
    label_smoothing: float = _option(
        "cross_entropy: share of the target spread evenly over all classes", 0.0, minimum=0, below=1
    )
    class_weights: OptionalFloats = _option(
        "cross_entropy: what the loss of each class is multiplied with, one number a class; "
        "binary_cross_entropy: that of the images that have the label; None: 1",
        None,
        minimum=0,
    )
    balanced: bool = _option(
        "class_weights by the counts of the training split: cross_entropy: images / (classes * "
        "images of the class); binary_cross_entropy: images without the label / images with it",
        False,
    )
    target_mean: OptionalFloats = _option(
        "mse, l1: of each number, subtracted before the loss and added to the output; None: 0", None
    )
    target_std: OptionalFloats = _option(
        "mse, l1: of each number, divided by before the loss and multiplied with the output; "
        "None: 1",
        None,
        above=0,
    )

    @property
    def target(self) -> str:
        """What the labels are: "classification", "multilabel" or "regression"."""
        return TARGET_OF_LOSS[self.kind]


@dataclasses.dataclass(kw_only=True)
class EmaConfig:
    """An exponential moving average of the weights, evaluated beside them."""

    decay: float = _option(
        "share of the average that an update leaves; 0: no average", 0.0, minimum=0, below=1
    )
    warmup: bool = _option(
        "after t updates the decay is at most (1 + t) / (10 + t): the first weights are soon "
        "forgotten",
        False,
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
        "its registered model; None or empty: the one that its weights state", ""
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
class TrainingConfig:
    """How updates are sent to the devices and computed there."""

    steps_per_dispatch: int = _option(
        "updates that go to the devices in one call, at most, as a compiled loop, which spares the "
        "host; 1: each by itself, which is another program: the same updates but for rounding",
        1,
        minimum=1,
    )
    reduce_dtype: str = _option(
        "type in which devices add up their gradients; auto: jit that in which each is computed, "
        "which is model.kwargs.dtype for most, and pmap that of the parameters",
        "auto",
        choices=("auto", "float32", "bfloat16"),
    )
    deterministic: bool = _option(
        "on GPUs, whose fastest kernels add in any order, only those that give the same bits in "
        "every run: a resume is bit-identical there with it alone",
        False,
    )


@dataclasses.dataclass(kw_only=True)
class EvaluationConfig:
    """When the validation split is evaluated, and what follows from it."""

    every_epochs: int = _option("epochs between validations; the last is always one", 1, minimum=1)
    metric: OptionalStr = _option(
        "the figure of the validation that says which checkpoint is best, such as loss, top1, mAP "
        "or rmse; None or empty: top1 of classes, mAP of several labels, else loss",
        "",
    )
    mode: str = _option(
        'which value of metric is better; "auto": as is known of it',
        "auto",
        choices=("auto", "max", "min"),
    )
    patience: OptionalInt = _option(
        "end the run after so many validations in a row without a better one; None: never",
        None,
        minimum=1,
    )


@dataclasses.dataclass(kw_only=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept."""

    every_steps: int = _option("updates between checkpoints", 1000, minimum=1)
    keep: int = _option("how many of the latest checkpoints stay", 2, minimum=1)
    keep_best: bool = _option(
        "also keep the one of the best validation, see evaluation.metric; with an average of the "
        "weights its own",
        True,
    )


@dataclasses.dataclass(kw_only=True)
class LogConfig:
    """What a run reports, and how often."""

    every_steps: int = _option("updates between train rows of metrics.jsonl", 50, minimum=1)
    tensorboard: bool = _option("write TensorBoard event files", True)
    wandb: OptionalStr = _option(
        "the project of Weights & Biases that gets the figures; None or empty: none", ""
    )
    profile: bool = _option(
        "trace three updates of this call, after the compilation, into profile/ of the work "
        "directory, for xprof",
        False,
    )
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
        "start from these weights: a weights file, a checkpoint, a work directory or RUN:best; "
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
        "init_from: how its position embeddings become those of another image size, and a "
        "ViT's patches those of another patch size; "
        '"none": they are of this one; "source": as timm does it, T2T-ViT\'s computed anew',
        "none",
        choices=(
            "none",
            "source",
            "timm",
            "bilinear_antialias",
            "bicubic",
            "bilinear",
            "google",
            "dinov2",
        ),
    )
    accumulation_steps: int = _option(
        "parts that a batch is computed in, one after another: the same update, less memory",
        1,
        minimum=1,
    )
    parallel: str = _option("how the step is spread over devices", "jit", choices=("jit", "pmap"))
    attention: str = _option(
        'how attention is computed; "auto": as suits the devices, by cuDNN on GPUs in half '
        'precision; "plain": the same on all devices',
        "auto",
        choices=("auto", "plain"),
    )
    matmul_precision: OptionalStr = _option(
        "how many digits of float32 operands a GPU or TPU multiplies with, at the least; "
        '"highest": all, as a CPU does. None: as JAX is set',
        None,
        choices=("default", "high", "highest"),
    )
    model: ModelConfig
    data: DataConfig
    optimizer: OptimizerConfig
    loss: LossConfig = _group(LossConfig)
    ema: EmaConfig = _group(EmaConfig)
    mix: MixConfig = _group(MixConfig)
    distillation: DistillationConfig = _group(DistillationConfig)
    training: TrainingConfig = _group(TrainingConfig)
    evaluation: EvaluationConfig = _group(EvaluationConfig)
    checkpoint: CheckpointConfig = _group(CheckpointConfig)
    log: LogConfig = _group(LogConfig)
    mesh: MeshConfig = _group(MeshConfig)


# What XLA has to be told before it starts for `training.deterministic`.
DETERMINISTIC_OPS = "--xla_gpu_deterministic_ops=true"

# A run may be resumed with other values of these fields and of these groups: they move work
# about, keep more or less of it, or report it. (Another mesh and other parts of a batch add up in
# another order, and a compiled loop is another program than a step by itself: the update is the
# same but for rounding. All else leaves every bit as it was.)
RESUMABLE_FIELDS = frozenset(
    {
        "accumulation_steps",
        "checkpoint",
        "data.num_workers",
        "data.on_device",
        "data.worker_kind",
        "log",
        "mesh",
        "parallel",
        "training.steps_per_dispatch",
    }
)
