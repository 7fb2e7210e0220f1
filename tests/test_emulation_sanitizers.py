"""What only the instrumented variants of the emulation see, and the whole suite under both."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls

ROOT = Path(__file__).resolve().parents[1]
# The tests of kernels; others of the name look at objects or at a device.
KERNELS = ("aggregate", "conv", "pack")
SUITE = ["tests/test_emulation.py"] + [
    str(path.relative_to(ROOT))
    for name in KERNELS
    for path in sorted(ROOT.glob(f"tests/test_cuda_{name}_*.py"))
]

pytestmark = pytest.mark.skipif(
    "DASR_EMULATION_VARIANT" in os.environ, reason="already inside a variant"
)


def probe(variant, name, **options):
    source, out = np.ones(4096, np.float32), np.zeros(8192, np.float32)
    build.load(variant).run_probe(name, calls.address(source), calls.address(out), **options)
    return out


# ---- out of bounds without instrumentation ----


@pytest.mark.parametrize("where", [512, 515, 4000])
def test_stray_writes_are_found_at_the_end_of_the_block(where):
    with pytest.raises(RuntimeError, match=f"dynamic offset {where} of 512"):
        probe("plain", "write_beyond_dynamic", a=where, shared=512)
    probe("plain", "write_beyond_dynamic", a=511, shared=512)


def test_stray_writes_beside_a_static_array_are_found():
    with pytest.raises(RuntimeError, match="beside a static array"):
        probe("plain", "write_beyond_static")
    probe("plain", "write_beyond_static", block=[16])


def test_stray_reads_give_nan():
    assert np.isnan(probe("plain", "read_beyond_dynamic", a=512, shared=512)[:32]).all()


# ---- the race detector ----

RACES = {
    "a tree without barriers": ("block_sum", {"a": 1, "block": [64]}),
    "no __syncwarp": ("warp_exchange", {"a": 1}),
    "a shuffle orders nothing": ("warp_exchange", {"a": 1, "b": 1}),
    "stores, then ldmatrix": ("ldmatrix", {"a": 4, "c": 1}),
    "cp.async, no barrier": ("async_pipeline", {"a": 2, "block": [128]}),
    "a buffer filled too early": ("async_pipeline", {"a": 3, "block": [128]}),
    "no named barrier": ("named_barrier", {"b": 1, "block": [256]}),
    "a place used again without a named barrier": ("named_barrier", {"b": 2, "block": [256]}),
    "another named barrier is missing": ("named_barriers_in_a_row", {"a": 1, "block": [96]}),
    "operands of wgmma, no barrier": ("wgmma", {"b": 3, "c": 1, "block": [128], "shared": 14720}),
    "operands of wgmma, written too early": (
        "wgmma",
        {"b": 11, "c": 1, "block": [128], "shared": 14720},
    ),
}


@pytest.mark.parametrize("case", RACES)
def test_races_are_found(case):
    name, options = RACES[case]
    module = build.load("race")
    for order in ("forward", "reverse", "shuffled"):
        module.set_order(order, 3)
        with pytest.raises(RuntimeError, match="race in shared memory"):
            probe("race", name, **options)
        right = {"a": 4 if name == "ldmatrix" else 0, "b": 0, "c": int(name == "wgmma")}
        probe("race", name, **{**options, **right})
    module.set_order("forward")


def test_races_hide_from_values():
    # What makes the detector worth having: in this order the broken tree adds up.
    assert (probe("plain", "warp_exchange", a=1, b=1)[:32] == 1).all()


def test_stores_that_the_async_proxy_may_not_see_are_found():
    options = {"block": [128], "shared": 14720}
    probe("race", "wgmma", **options)
    with pytest.raises(RuntimeError, match=r"thread 77 wrote .* not followed by fence"):
        probe("race", "wgmma", b=2, **options)


@pytest.mark.parametrize("name", ["read_beyond_dynamic", "write_beyond_dynamic"])
def test_the_race_variant_sees_each_stray_access(name):
    probe("race", name, a=0, shared=512)
    with pytest.raises(RuntimeError, match="out of bounds: access"):
        probe("race", name, a=512, shared=512)
    with pytest.raises(RuntimeError, match="out of bounds: access"):
        probe("race", "write_beyond_static")


def test_atomics_do_not_race_with_each_other():
    source, out = np.arange(64, dtype=np.int32) % 8, np.zeros(8, np.int32)
    module = build.load("race")
    module.run_probe("shared_atomics", calls.address(source), calls.address(out), block=[64])
    assert (out == 8).all()


def test_aggregation_does_not_race():
    check_aggregation(build.load("race"))


# ---- AddressSanitizer, in a process of its own ----


def check_aggregation(module):
    rng = np.random.default_rng(0)
    for b, k, n in ((3, 5, 519), (9, 4, 520), (2, 33, 7)):
        weight, routing, grad = (
            rng.standard_normal(shape).astype(np.float32) for shape in ((k, n), (b, k), (b, n))
        )
        out, grad_weight, grad_routing = (np.empty_like(x) for x in (grad, weight, routing))
        calls.aggregate_experts(weight, routing, out, module)
        calls.aggregate_experts_backward(weight, routing, grad, grad_weight, grad_routing, module)
        assert np.allclose(out, routing @ weight, atol=1e-4)
        assert np.allclose(grad_weight, routing.T @ grad, atol=1e-4)
        assert np.allclose(grad_routing, grad @ weight.T, atol=1e-3)


def run_in_asan(code):
    build.build("asan")
    prelude = "from tests.emulation import build, calls; m = build.load('asan'); "
    return subprocess.run(
        [sys.executable, "-c", prelude + code],
        env=build.sanitizer_environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_aggregation_under_asan():
    done = run_in_asan(
        "from tests.test_emulation_sanitizers import check_aggregation; check_aggregation(m)"
    )
    assert done.returncode == 0, done.stderr


ASAN = {
    "write beyond dynamic": ("write_beyond_dynamic", "0, 0, a=512, shared=512", "use-after-poison"),
    "read beyond dynamic": ("read_beyond_dynamic", "0, o, a=512, shared=512", "use-after-poison"),
    "write beyond static": ("write_beyond_static", "0, 0", "use-after-poison"),
    "write beyond global": ("indices", "0, o, block=[33]", "heap-buffer-overflow"),
    "read beyond global": ("async_sizes", "o + 64, o", "heap-buffer-overflow"),
}


@pytest.mark.parametrize("case", ASAN)
def test_asan_stops_at_stray_accesses(case):
    name, arguments, message = ASAN[case]
    done = run_in_asan(
        "import numpy as np; out = np.zeros(32, np.float32); o = calls.address(out); "
        f"m.run_probe('{name}', {arguments})"
    )
    assert done.returncode != 0 and message in done.stderr, done.stderr
    assert name in done.stderr  # the report names the kernel


# ---- the suite once more ----


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["asan", "race"])
def test_suite(variant):
    build.build(variant)
    environment = build.sanitizer_environment() if variant == "asan" else dict(os.environ)
    environment["DASR_EMULATION_VARIANT"] = variant
    command = [sys.executable, "-m", "pytest", "-q", "-m", "slow or not slow", *SUITE]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
