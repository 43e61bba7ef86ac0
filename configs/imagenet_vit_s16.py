"""ViT-S/16 from scratch on ImageNet-1k, after "Better plain ViT baselines".

    python train.py --config configs/imagenet_vit_s16.py --config.data.data_dir=DIR

ImageNet has to be fetched by hand and prepared with TFDS (`tfds build imagenet2012
--file_format=array_record`); DIR is the directory that then holds `imagenet2012/`.

From Beyer, Zhai, Kolesnikov 2022 (2205.01580), section 2, for 90 epochs: batch 1024, learning rate
1e-3 with cosine decay to 0, weight decay 1e-4 (there not times the learning rate but times the
schedule: 0.1 in AdamW's terms) on matrices, 10,000 steps of warm-up (8 epochs), gradients clipped
to norm 1, Adam's own betas, global average pooling, mirrored images, statistics that map pixels to
[-1, 1], random resized crops of at least 5% of the area, RandAugment (2 operations, magnitude 10)
and mixup 0.2.

Two things differ from the paper, whose top-1 is 76.5%: RandAugment has timm's operations, not those
of TensorFlow's code, and position embeddings are learnt, not fixed sines and cosines. The paper
keeps 1% of the training split for validation, and so does this; `validation` is the test.

Hardware, time and accuracy: not measured.
"""

from vit_jax.config import (
    CheckpointConfig,
    DataConfig,
    LogConfig,
    MixConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        num_epochs=90,
        model=ModelConfig(
            name="vit_small_patch16_224",
            kwargs={"num_classes": 1000, "global_pool": "avg", "class_token": False},
        ),
        data=DataConfig(
            source="tfds",
            name="imagenet2012",
            train_split="train[:99%]",
            validation_split="train[99%:]",
            test_split="validation",
            batch_size=1024,
            eval_batch_size=1024,
            image_size=224,
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
            horizontal_flip=True,
            random_resized_crop=True,
            crop_scale=(0.05, 1.0),
            rand_augment="rand-m10-n2-p1",
            num_workers=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            warmup_epochs=8.0,
            weight_decay=0.1,
            decay_mask="matrices",
            gradient_clip_norm=1.0,
        ),
        mix=MixConfig(mixup_alpha=0.2),
        checkpoint=CheckpointConfig(every_steps=1000),
        log=LogConfig(every_steps=50),
    )
