"""T2T-ViT-14 from ImageNet to CIFAR-100: fine-tuning, as the official release does it.

    vit-jax prepare cifar100
    python train.py --config configs/cifar100_t2t_vit_14_transfer.py --config.init_from=FILE

FILE and every number are those of `cifar10_t2t_vit_14_transfer.py`: the release uses the same for
both sets. Published top-1: 88.4%.

Hardware, time and accuracy here: not measured.
"""

from cifar10_t2t_vit_14_transfer import get_config as transfer_to_cifar10

from vit_jax.config import TrainConfig


def get_config() -> TrainConfig:
    config = transfer_to_cifar10()
    config.model.kwargs["num_classes"] = 100
    config.data.name = "cifar100"
    return config
