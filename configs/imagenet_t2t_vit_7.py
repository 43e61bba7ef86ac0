"""T2T-ViT-7 from scratch on ImageNet-1k: the official recipe.

    python train.py --config configs/imagenet_t2t_vit_7.py --config.data.data_dir=DIR

ImageNet has to be fetched by hand and prepared with TFDS (`tfds build imagenet2012
--file_format=array_record`); DIR is the directory that then holds `imagenet2012/`.

From the release of the authors of "Tokens-to-Token ViT" (2101.11986): global batch 512, AdamW with
betas .9 and .999 and eps 1e-8, no clipping; learning rate and weight decay by size
(7, 10 and 12: 1e-3 and .03); decay on matrices alone; 300 epochs of cosine decay
to 1e-5 with 10 epochs of warm-up from 1e-6 and 10 of cooldown, the learning rate constant within
an epoch; label smoothing .1, stochastic depth .1; random resized crop with random interpolation,
mirrored images, RandAugment (rand-m9-mstd0.5-inc1), random erasing (.25, by pixel), mixup .8 and
CutMix 1.0, switching at .5; an average of the weights (EMA .99996); evaluation on the central .9 of
the image, bicubic. Published top-1: 71.7%.

Hardware, time and accuracy: not measured.
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
        num_epochs=310,
        model=ModelConfig(name="t2t_vit_7", kwargs={"num_classes": 1000, "drop_path_rate": 0.1}),
        data=DataConfig(
            source="tfds",
            name="imagenet2012",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=512,
            eval_batch_size=512,
            image_size=224,
            horizontal_flip=True,
            random_resized_crop=True,
            interpolation="random",
            eval_interpolation="bicubic",
            rand_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.25,
            num_workers=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            schedule_unit="epoch",
            warmup_epochs=10.0,
            cooldown_epochs=10.0,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            weight_decay=0.03,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
        ema=EmaConfig(decay=0.99996),
        checkpoint=CheckpointConfig(every_steps=2502),  # once an epoch
        log=LogConfig(every_steps=50),
    )
