"""DeiT-S from scratch on ImageNet-1k: the recipe of its release.

    python train.py --config configs/imagenet_deit_small.py --config.data.data_dir=DIR

ImageNet has to be fetched by hand and prepared with TFDS (`tfds build imagenet2012
--file_format=array_record`); DIR is the directory that then holds `imagenet2012/`.

From "Training data-efficient image transformers" (2012.12877), table 9 and the release's defaults:
batch 1024, AdamW with betas .9 and .999 and eps 1e-8, no clipping; learning rate 5e-4 * batch /
512, weight decay .05 on matrices and the distillation token; 300 epochs of cosine decay to 1e-5
with 5 epochs of warm-up from 1e-6 and 10 of cooldown, the learning rate constant within an epoch;
label smoothing .1, stochastic depth .1; random resized crop (bicubic), mirrored images,
RandAugment (rand-m9-mstd0.5-inc1), random erasing (.25, by pixel), each image three times an epoch
(repeated augmentation), mixup .8 and CutMix 1.0, switching at .5; an average of the weights (EMA
.99996); evaluation on the central .875 of the image, bicubic. Published top-1: 79.8%.

With a teacher, whose classes must be the same (hard distillation; published top-1: 81.2%):

    --config.model.name=deit_small_distilled_patch16_224 --config.distillation.kind=hard
    --config.distillation.teacher=FILE --config.distillation.teacher_model=NAME

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
        model=ModelConfig(
            name="deit_small_patch16_224", kwargs={"num_classes": 1000, "drop_path_rate": 0.1}
        ),
        data=DataConfig(
            source="tfds",
            name="imagenet2012",
            train_split="train",
            validation_split="validation",
            test_split=None,
            batch_size=1024,
            eval_batch_size=1024,
            image_size=224,
            horizontal_flip=True,
            random_resized_crop=True,
            interpolation="bicubic",
            eval_crop_fraction=0.875,
            eval_interpolation="bicubic",
            rand_augment="rand-m9-mstd0.5-inc1",
            random_erasing=0.25,
            repeated_augmentation=3,
            num_workers=16,
        ),
        optimizer=OptimizerConfig(
            learning_rate=1e-3,
            schedule="cosine",
            schedule_unit="epoch",
            warmup_epochs=5.0,
            warmup_learning_rate=1e-6,
            cooldown_epochs=10.0,
            min_learning_rate=1e-5,
            weight_decay=0.05,
            decay_mask="deit",
        ),
        loss=LossConfig(label_smoothing=0.1),
        mix=MixConfig(mixup_alpha=0.8, cutmix_alpha=1.0),
        ema=EmaConfig(decay=0.99996),
        checkpoint=CheckpointConfig(every_steps=1251),  # once an epoch
        log=LogConfig(every_steps=50),
    )
