"""T2T-ViT-24 from scratch on ImageNet-1k: the official recipe, as far as it is built.

    python train.py --config configs/imagenet_t2t_vit_24.py --config.data.data_dir=DIR

ImageNet has to be fetched by hand and prepared with TFDS (`tfds build imagenet2012
--file_format=array_record`); DIR is the directory that then holds `imagenet2012/`.

From the release of the authors of "Tokens-to-Token ViT" (2101.11986): global batch 512, AdamW with
betas .9 and .999 and eps 1e-8, no clipping; learning rate and weight decay by size
(19, 24, t_19 and t_24: 5e-4 and .065); decay on matrices alone; 300 epochs of cosine decay
to 1e-5 after 10 epochs of warm-up from 1e-6; label smoothing .1, stochastic depth .1,
mirrored images; evaluation on the central .9 of the image. Published top-1: 82.3%.

Not built yet, and named in the field `unbuilt`, for which the run is refused:
random resized crop with random interpolation, RandAugment (rand-m9-mstd0.5-inc1), random erasing
(.25, by pixel), mixup .8 and cutmix 1.0 (switching at .5), a learning rate that steps once an
epoch, 10 epochs of cooldown, and an average of the weights (EMA .99996). With
`--config.unbuilt=None` it trains without them, on central crops, for less accuracy.

Hardware, time and accuracy: not measured.
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
        num_epochs=300,
        unbuilt=(
            "random resized crop, RandAugment, random erasing, mixup, cutmix, EMA of the weights, "
            "learning rate by epoch, cooldown"
        ),
        model=ModelConfig(name="t2t_vit_24", kwargs={"num_classes": 1000, "drop_path_rate": 0.1}),
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
            num_workers=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=5e-4,
            schedule="cosine",
            warmup_epochs=10.0,
            warmup_learning_rate=1e-6,
            min_learning_rate=1e-5,
            weight_decay=0.065,
            decay_mask="matrices",
        ),
        loss=LossConfig(label_smoothing=0.1),
        checkpoint=CheckpointConfig(every_steps=2502),  # once an epoch
        log=LogConfig(every_steps=50),
    )
