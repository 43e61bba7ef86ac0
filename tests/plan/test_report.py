"""What is printed, and what is proposed, of plans made by hand."""

import dataclasses
import io
import json

import pytest
from rich.console import Console

from vit_jax.config import TrainConfig
from vit_jax.config.recipes import find_recipe, load_recipe
from vit_jax.plan.collectives import Total
from vit_jax.plan.compile import Compiled, Inputs, Memory
from vit_jax.plan.plan import Counts, Plan, as_json
from vit_jax.plan.report import show, show_attempt, show_untried
from vit_jax.plan.roofline import roofline
from vit_jax.plan.search import attempts, search
from vit_jax.plan.topology import parse_topology

GIB = 2**30


def _plan(topology="v5e:4x4", fits=True, config: TrainConfig | None = None) -> Plan:
    config = config or load_recipe(find_recipe("imagenet_vit_s16"))
    slice_ = parse_topology(topology)
    devices = slice_.chips * slice_.chip.devices
    compiled = Compiled(
        devices=devices,
        mesh={"data": devices, "fsdp": 1},
        image=(224, 224, 3),
        parameters=22_000_000,
        parameter_bytes=88_000_000,
        step_flops=devices * 10**12,
        inputs=Inputs(GIB, 2 * GIB, GIB // 2),
        seconds=61.0,
        memory=Memory(4 * GIB, GIB // 4, 5 * GIB, GIB // 4) if fits else None,
        needed_bytes=int(9.5 * GIB) if fits else 20 * GIB,
        text="",
    )
    if not fits:
        return Plan(config, slice_, compiled, None, None)
    exchanges = (Total("all-reduce", 3, 88_000_016, 165_000_030.0),)
    counts = Counts(
        flops=10**12,
        slice_flops=3 * 10**10,
        wide_flops=0,
        model_flops=1_010_000_000_000,
        step_flops=10**12,
        hbm_bytes=8 * 10**9,
        exchanges=exchanges,
        loops=(),
    )
    if slice_.chip.is_gpu:
        calls = {"__cublas$lt$matmul": 219, "__cudnn$fmhaSoftmax": 12}
        counts = dataclasses.replace(counts, kernels=1210, library_calls=calls)
    else:
        counts = dataclasses.replace(counts, cycles=30_060_000, copy_cycles=1_503_000)
    bound = roofline(
        slice_, flops=1e12, hbm_bytes=8e9, sent_bytes=1.65e8, model_flops=1e12, batch_size=1024
    )
    return Plan(config, slice_, compiled, counts, bound)


def _printed(print_it, width=100) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    print_it(console)
    return console.file.getvalue()


def test_a_plan_that_fits_is_told_in_full():
    text = _printed(lambda console: show(_plan(), "imagenet_vit_s16", console))
    for words in (
        "imagenet_vit_s16 on v5e:4x4",
        "16 chips of TPU v5e, 16 GiB each",
        "batch 1024, 64 a chip",
        "fits",
        "9.50 GiB",
        "60% of 15.75 GiB usable",
        "1.000 TFLOP",
        "compiled are -0.99%",  # of the model's own count
        "all-reduce",
        "88,000,016 B",
        "88,000,000 B",
        "9.768 ms",  # 8 GB at 819 GB/s
        "<- bound",
        "104,832 images/s",
        "30,060,000 cycles (20.000 ms), 5.0% of them copies between layouts",
        "An upper bound on speed, not a promise",
    ):
        assert words in text, words
    assert "does not fit" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_a_device_is_not_called_a_chip_where_it_is_half_of_one():
    text = _printed(lambda console: show(_plan("TPU7x:2x2x2"), "r", console))
    assert "8 chips of TPU7x (Ironwood), 192 GiB each, for 2 devices" in text
    assert "of 94.74 GiB usable" in text
    assert "a device sends" in text


def test_gpus_are_told_with_their_kernels_and_no_cycles():
    text = _printed(lambda console: show(_plan("h200:8"), "r", console))
    for words in (
        "8 x NVIDIA H200 141GB HBM3e, 141 GiB each",
        "batch 1024, 128 a GPU",
        "of 105.75 GiB usable",
        "kernels 1,210 launched",
        "__cudnn$fmhaSoftmax 12 calls",
        "a GPU; ",
        "at its peak for TF32",
        "NVLink",
    ):
        assert words in " ".join(text.split()), words
    assert "cycles" not in text
    assert "chip" not in text


def test_a_step_that_compiles_may_not_fit_a_gpu():
    plan = _plan("h200:8")
    large = dataclasses.replace(plan.compiled, needed_bytes=120 * GIB)
    plan = dataclasses.replace(plan, compiled=large)
    assert not plan.fits
    text = _printed(lambda console: show(plan, "r", console))
    assert "does not fit" in text
    assert "kernels" in text


def test_pmap_is_said_to_be_planned_as_jit():
    config = load_recipe(find_recipe("imagenet_vit_s16"))
    config.parallel = "pmap"
    text = _printed(lambda console: show(_plan(config=config), "r", console))
    assert 'planned is the form parallel="jit"' in text


def test_a_plan_that_does_not_fit_proposes_what_is_not_compiled():
    plan = _plan(fits=False)
    text = _printed(
        lambda console: (show(plan, "r", console), show_untried(attempts(plan.config, 16), console))
    )
    assert "does not fit" in text
    assert "20.00 GiB" in text
    assert "images/s" not in text
    assert "not compiled: --search does that" in text
    order = [text.index(f"--config.{name}") for name in ("mesh.fsdp", "model.kwargs.remat")]
    order += [text.index("accumulation_steps=2"), text.index("data.batch_size=512")]
    assert order == sorted(order)


def test_attempts_add_up_and_divide_the_batch():
    config = load_recipe(find_recipe("imagenet_vit_s16"))
    found = list(attempts(config, 64))
    assert [one.flags[-1].removeprefix("--config.") for one in found] == [
        "mesh.fsdp=-1",
        "model.kwargs.remat=blocks",
        "accumulation_steps=2",
        "accumulation_steps=4",
        "accumulation_steps=8",
        "accumulation_steps=16",
    ]
    assert found[3].added == ("--config.accumulation_steps=4",)
    assert found[3].flags == (
        "--config.mesh.data=1",
        "--config.mesh.fsdp=-1",
        "--config.model.kwargs.remat=blocks",
        "--config.accumulation_steps=4",
    )
    assert found[-1].config.mesh.fsdp == -1
    assert found[-1].config.model.kwargs["remat"] == "blocks"
    assert found[0].config.accumulation_steps == 1
    assert config.mesh.fsdp == 1  # the user's own stays
    smaller = [one.config.data.batch_size for one in attempts(config, 16)][-2:]
    assert smaller == [512, 256]


def test_an_attempt_does_not_repeat_what_is_set():
    config = load_recipe(find_recipe("imagenet_vit_s16"))
    config.mesh.fsdp = 16
    config.model.kwargs["remat"] = "dots"
    assert next(iter(attempts(config, 16))).flags == ("--config.accumulation_steps=2",)


def test_a_search_ends_with_the_first_that_fits():
    first = _plan(fits=False)
    tried = list(search(first, lambda config: _plan(fits="remat" in config.model.kwargs)))
    assert [plan.fits for _, plan in tried] == [False, True]
    assert tried[-1][0].flags[-1] == "--config.model.kwargs.remat=blocks"


@pytest.mark.parametrize("fits", [True, False])
def test_json_holds_plain_types(fits):
    found = json.loads(json.dumps(as_json(_plan(fits=fits), "r")))
    assert found["fits"] is fits
    assert found["topology"] == "v5e:4x4"
    assert ("roofline" in found) is ("memory" in found) is fits
    if fits:
        assert found["roofline"]["bound"] == "hbm"
        assert found["counts"]["exchanges"][0]["bytes"] == 88_000_016
        assert sum(found["memory"].values()) == found["needed_bytes"]


def test_loops_of_unknown_length_are_told():
    plan = _plan()
    assert plan.counts is not None
    plan = dataclasses.replace(plan, counts=dataclasses.replace(plan.counts, loops=("while.7",)))
    assert "while.7" in _printed(lambda console: show(plan, "r", console))


def test_an_attempt_is_told_with_its_flags():
    plan = _plan(fits=False)
    attempt = next(iter(attempts(plan.config, 16)))
    text = _printed(lambda console: show_attempt(attempt, plan, console))
    assert "--config.mesh.data=1 --config.mesh.fsdp=-1" in text
    assert "does not fit  20.00 GiB of 15.75 GiB" in text
