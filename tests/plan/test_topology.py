import pytest

from vit_jax.plan.topology import CHIPS, parse_topology


@pytest.mark.parametrize(
    ("name", "chips", "devices"),
    [
        ("v4:2x2x1", 4, 4),
        ("v5e:4x4", 16, 16),
        ("V5E:1x1", 1, 1),
        ("v5p:2x2x2", 8, 8),
        ("v6e:8x8", 64, 64),
        ("tpu7x:2x2x2", 8, 16),
        ("h100:1", 1, 1),
        ("H200:8", 8, 8),
    ],
)
def test_a_slice_has_its_chips(name, chips, devices):
    topology = parse_topology(name)
    assert topology.chips == chips
    assert topology.chips * topology.chip.devices == devices
    assert topology.name.lower() == name.lower()
    assert topology.name.split(":")[0] in CHIPS


@pytest.mark.parametrize(
    "name",
    ["v5e", "v5e:", "v5e:4x", "v9:4x4", "v5e-16", "4x4", "v5e:4x4x4", "v5p:2x2", "v5e:0x4", "h100"],
)
def test_what_is_no_slice_is_refused_with_examples(name):
    with pytest.raises(ValueError, match=r"--topology: .*examples.*\dx\d"):
        parse_topology(name)


@pytest.mark.parametrize("name", ["h100:16", "h100:2x2", "h200:0"])
def test_gpus_are_those_of_one_host(name):
    with pytest.raises(ValueError, match=r"--topology: wanted the NVIDIA .* of one host.*h.00:8"):
        parse_topology(name)


def test_links_are_those_of_the_slice():
    # Along two chips there is one neighbour, along more two, along one none.
    whole = CHIPS["v5e"].ici_bandwidth
    assert parse_topology("v5e:4x4").ici_bandwidth == whole
    assert parse_topology("v5e:2x4").ici_bandwidth == whole * 3 / 4
    assert parse_topology("v5e:2x2").ici_bandwidth == whole / 2
    assert parse_topology("v5e:1x1").ici_bandwidth == 0
    assert parse_topology("v4:2x2x1").ici_bandwidth == CHIPS["v4"].ici_bandwidth / 3
    # GPUs are all at one switch.
    assert parse_topology("h100:2").ici_bandwidth == CHIPS["h100"].ici_bandwidth
    assert parse_topology("h100:1").ici_bandwidth == 0


def test_no_device_has_more_memory_than_its_part_of_the_chip():
    for chip in CHIPS.values():
        part = chip.hbm_bytes / chip.devices
        least = 0.74 if chip.is_gpu else 0.95
        assert least * part < chip.usable_bytes < part
