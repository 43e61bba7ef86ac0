import pytest

from vit_jax.plan.roofline import roofline
from vit_jax.plan.topology import parse_topology

V5E = parse_topology("v5e:4x4")


def _bound(topology=V5E, **changed):
    work = {"flops": 197e9, "hbm_bytes": 0, "sent_bytes": 0, "model_flops": 98.5e9}
    return roofline(topology, **{**work, **changed}, batch_size=1024)


def test_matmuls_at_the_peak():
    bound = _bound()
    assert bound.seconds == bound.compute == pytest.approx(1e-3)
    assert bound.bound == "compute"
    assert bound.images_per_second == pytest.approx(1.024e6)
    assert bound.utilization == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("changed", "limit", "seconds"),
    [({"hbm_bytes": 819e7}, "hbm", 1e-2), ({"sent_bytes": 200e6 * 5}, "ici", 5e-3)],
)
def test_the_slowest_is_the_step(changed, limit, seconds):
    bound = _bound(**changed)
    assert bound.bound == limit
    assert bound.seconds == pytest.approx(seconds)
    assert bound.images_per_second == pytest.approx(1024 / seconds)
    assert bound.utilization == pytest.approx(98.5e9 / seconds / 197e12)


def test_a_device_of_tpu7x_is_half_a_chip():
    topology = parse_topology("TPU7x:2x2x2")
    bound = _bound(topology, flops=2307e9, hbm_bytes=7380e6, sent_bytes=600e6)
    assert bound.compute == pytest.approx(2e-3)
    assert bound.hbm == pytest.approx(2e-3)
    # Half of the links of its chip, which has three neighbours of six, are not halved again.
    assert bound.ici == pytest.approx(2e-3)


def test_a_gpu_multiplies_float32_at_half_the_rate():
    gpu = parse_topology("h100:1")
    narrow, wide = (_bound(gpu, flops=989.4e9, wide_flops=part) for part in (0, 989.4e9))
    assert narrow.compute == pytest.approx(1e-3)
    assert wide.compute == pytest.approx(2e-3)
    # JAX multiplies float32 on a TPU as bfloat16.
    assert _bound(wide_flops=197e9).compute == pytest.approx(1e-3)


def test_one_chip_sends_nothing():
    assert _bound(parse_topology("v5e:1x1")).ici == 0
