"""A linear probe on Imagenette: any model with any weights, of which only a new head is trained.

    vit-jax prepare imagenette128
    python train.py --config configs/imagenette_linear_probe.py --config.init_from=WEIGHTS \\
        --config.model.name=NAME

WEIGHTS is a file that `vit-jax convert` reads, `hf:OWNER/NAME`, or a work directory of ours; NAME
the model that they are of, ViT-S/16 by default, whose fields are --config.model.kwargs.FIELD.
The set is Imagenette (fast.ai) at 128x128 pixels; --config.data.name=imagenette224 is that of
224x224, and another set is chosen with --config.data.name and --config.model.kwargs.num_classes.

`optimizer.frozen` leaves all as it is but the head, which has neither gradients nor moments to keep
for the rest. SGD with momentum .9 and no decay, batch 256, 30 epochs of cosine decay from .1;
mirrored images. The numbers are ours.

Hardware, time and accuracy: not measured.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=30,
        init_from="weights.safetensors",
        init_head="fresh",
        init_resize="source",
        model=ModelConfig(name="vit_small_patch16_224", kwargs={"num_classes": 10}),
        data=DataConfig(
            source="tfds",
            name="imagenette128",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=256,
            eval_batch_size=128,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(
            name="sgd", learning_rate=0.1, schedule="cosine", frozen=("backbone",)
        ),
        checkpoint=CheckpointConfig(every_steps=36),  # once an epoch
        log=LogConfig(every_steps=10),
    )
