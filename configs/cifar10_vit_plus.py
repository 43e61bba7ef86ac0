"""A small ViT on CIFAR-10, no larger than seed 003's and trained no longer, but trained well.

    vit-jax prepare cifar10
    python train.py --config configs/cifar10_vit_plus.py

2,400,202 parameters (seed 003's, `cifar10_vit`: 2,526,666) and 100 epochs. The images stay 32x32,
in patches of 4: 64 tokens of width 192 in 8 layers, global average pooling. Methods, as of DeiT
(2012.12877) and T2T-ViT (2101.11986), milder where the images are small: AdamW with cosine decay
and warm-up, decay on matrices alone, random crops after padding by 4, mirrored images, RandAugment,
mixup and CutMix on half of the batches, label smoothing, an average of the weights. The numbers are
ours. Splits are those of `cifar10_vit.py`.

MEASURED
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    EmaConfig,
    LogConfig,
    LossConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=100,
        model=ModelConfig(
            name="vit_tiny_patch16_224",
            kwargs={
                "img_size": 32,
                "patch_size": 4,
                "num_classes": 10,
                "embed_dim": 192,
                "depth": 8,
                "num_heads": 3,
                "mlp_ratio": 2.0,
                "class_token": False,
                "global_pool": "avg",
            },
        ),
        data=DataConfig(
            source="tfds",
            name="cifar10",
            train_split="train",
            validation_split="shuffled(test)[:70%]",
            test_split="shuffled(test)[70%:]",
            batch_size=64,
            eval_batch_size=256,
            image_size=32,
            padding_crop=4,
            horizontal_flip=True,
            rand_augment="rand-m5-n1-mstd0.5-inc1",
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=5.0,
            min_learning_rate=1e-5,
            weight_decay=0.05,
            decay_mask="matrices",
            gradient_clip_norm=1.0,
        ),
        loss=LossConfig(label_smoothing=0.1),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0, probability=0.5),
        ema=EmaConfig(decay=0.999, warmup=True),
        checkpoint=CheckpointConfig(every_steps=781),  # once an epoch
        log=LogConfig(every_steps=100),
    )
