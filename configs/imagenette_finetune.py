"""Fine-tuning on Imagenette: any model from any weights, with a new head and at another size.

    vit-jax prepare imagenette128
    python train.py --config configs/imagenette_finetune.py --config.init_from=WEIGHTS \\
        --config.model.name=NAME

WEIGHTS is a file that `vit-jax convert` reads, `hf:OWNER/NAME`, or a work directory of ours; NAME
the model that they are of, ViT-S/16 by default, whose fields are --config.model.kwargs.FIELD,
img_size among them: position embeddings are resized to it. The set is Imagenette (fast.ai) at
128x128 pixels; --config.data.name=imagenette224 is that of 224x224, and another set is chosen with
--config.data.name and --config.model.kwargs.num_classes.

AdamW, batch 64, 10 epochs of cosine decay from 2e-4 after half an epoch of warm-up, layer-wise
learning rate decay .75 (as BEiT, 2106.08254), weight decay .05 on matrices, gradients clipped to
norm 1, label smoothing .1, mirrored images. The numbers are ours.

Hardware, time and accuracy: not measured as it stands. Shortened, on two CPU cores: a
`vit_classifier` trained by `cifar10_vit_plus` on 5,000 images of CIFAR-10 (32x32 pixels, test
top-1 0.493), exported by `vit-jax convert`, with a new head at 48x48 pixels, 1,000 images, 4
epochs of batch 32, learning rate 1e-3: top-1 0.487, 0.496 and 0.472 for seeds 0, 1 and 2 on half
of the validation images; the same steps from scratch, without layer-wise decay: 0.311, 0.300 and
0.308.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=10,
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
            batch_size=64,
            eval_batch_size=128,
            horizontal_flip=True,
        ),
        optimizer=OptimizerConfig(
            learning_rate=2e-4,
            schedule="cosine",
            warmup_epochs=0.5,
            weight_decay=0.05,
            decay_mask="matrices",
            layer_decay=0.75,
            gradient_clip_norm=1.0,
        ),
        loss=LossConfig(label_smoothing=0.1),
        checkpoint=CheckpointConfig(every_steps=147),  # once an epoch
        log=LogConfig(every_steps=20),
    )
