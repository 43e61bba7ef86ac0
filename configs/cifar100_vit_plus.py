"""A small T2T-ViT on CIFAR-100: no larger than seed 003's ViT, no longer, with other methods.

    vit-jax prepare cifar100
    python train.py --config configs/cifar100_vit_plus.py

2,371,658 parameters (seed 003's, `cifar100_vit`: 2,618,916) and 100 epochs. The images are resized
to 64x64, from which the soft splits make 4 by 4 tokens of width 192 for 7 layers. Methods, as of
DeiT (2012.12877) and T2T-ViT (2101.11986), milder since the images are small: AdamW with decay on
matrices alone, cosine decay and warm-up, random crops after padding, mirrored images, a mild
RandAugment, label smoothing, an average of the weights. Without mixup and CutMix, which pay in
longer runs: --config.mix.mixup_alpha=0.8 --config.mix.cutmix_alpha=1.0 adds them. The numbers are
ours. Splits are those of `cifar100_vit.py`.

Hardware, time and accuracy: not measured.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    LogConfig,
    LossConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=100,
        model=ModelConfig(
            name="t2t_vit_7",
            kwargs={
                "img_size": 64,
                "num_classes": 100,
                "embed_dim": 192,
                "depth": 7,
                "num_heads": 3,
            },
        ),
        data=DataConfig(
            source="tfds",
            name="cifar100",
            train_split="train",
            validation_split="shuffled(test)[:70%]",
            test_split="shuffled(test)[70%:]",
            batch_size=32,
            eval_batch_size=256,
            image_size=64,
            padding_crop=8,
            horizontal_flip=True,
            rand_augment="rand-m5-n1-mstd0.5-inc1",
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="cosine",
            warmup_epochs=1.0,
            min_learning_rate=1e-5,
            weight_decay=0.05,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        ema=EmaConfig(decay=0.999, warmup=True),
        checkpoint=CheckpointConfig(every_steps=1562),  # once an epoch
        log=LogConfig(every_steps=100),
    )
