"""The emulation of a CUDA block: what each primitive computes, and what it refuses."""

import numpy as np
import pytest
import torch

from .emulation import build

if build.missing():
    pytest.skip(build.missing(), allow_module_level=True)

from .emulation import calls

rng = np.random.default_rng(0)


def probe(name, source, result, **options):
    result.reshape(-1).view(np.uint8)[:] = 0xFF
    calls.run(name, source, result, **options)
    return result


def f32(*shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["forward", "reverse", "shuffled"])
def order(request):
    calls.module().set_order(request.param, 7)
    yield request.param
    calls.module().set_order("forward")


@pytest.fixture
def shared_limit():
    yield calls.module().set_shared_limit
    calls.module().set_shared_limit(227 * 1024)


def test_indices_in_three_dimensions():
    n_blocks, n_threads = 2 * 3 * 2, 5 * 2 * 3
    out = np.empty(n_blocks * n_threads, np.int32)
    probe("indices", None, out, grid=[2, 3, 2], block=[5, 2, 3])
    expected = np.arange(n_blocks)[:, None] * 10000 + np.arange(n_threads)
    assert (out.reshape(n_blocks, n_threads) == expected).all()


SHUFFLES = {  # name -> source lane for (lane, argument, width), None: the lane's own value
    "shfl": lambda i, x, w: i // w * w + x % w,
    "up": lambda i, x, w: i - x if i % w >= x else i,
    "down": lambda i, x, w: i + x if i % w + x < w else i,
    "xor": lambda i, x, w: i ^ x if (i ^ x) < i // w * w + w else i,
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffle(name, order):
    kind, values = list(SHUFFLES).index(name), f32(32)
    for width in (32, 16, 8, 4, 2):
        for x in (0, 1, 3, 7, 16, 31):
            out = probe("shuffle", values, np.empty(32, np.float32), a=kind, b=x, c=width)
            source = [SHUFFLES[name](i, x, width) for i in range(32)]
            assert (out == values[source]).all(), (x, width)


def test_shuffle_of_doubles_and_of_half_warps(order):
    values = rng.standard_normal(32)
    assert (
        probe("shuffle_double", values, np.empty(32)) == values.reshape(16, 2)[:, ::-1].ravel()
    ).all()
    values = f32(32)
    out = probe("shuffle_halves", values, np.empty(32, np.float32))
    assert (out[:16] == values[3]).all() and (out[16:] == values[20]).all()


def test_votes():
    for predicate in (np.zeros(32, np.int32), np.ones(32, np.int32), rng.integers(0, 2, 32)):
        predicate = predicate.astype(np.int32)
        out = probe("vote", predicate, np.empty((32, 3), np.uint32))
        ballot = sum(1 << i for i in range(32) if predicate[i])
        assert (out == [ballot, predicate.any(), predicate.all()]).all()


def test_partial_last_warp():
    # 48 threads: the second warp has 16 lanes, and full masks mean those.
    values = np.ones(48, np.int32)
    out = probe("vote", values, np.empty((48, 3), np.uint32), block=[48])
    assert (out[:32, 0] == 0xFFFFFFFF).all() and (out[32:, 0] == 0xFFFF).all()
    assert (out[:, 2] == 1).all()


@pytest.mark.parametrize("n", [2, 64, 1024])
def test_barrier(n, order):
    values = rng.integers(-9, 9, n).astype(np.float32)
    out = probe("block_sum", values, np.empty(n, np.float32), block=[n])
    assert (out == values.sum()).all()


def test_syncwarp(order):
    values = f32(32)
    out = probe("warp_exchange", values, np.empty(32, np.float32))
    assert (out == values.reshape(16, 2)[:, ::-1].ravel()).all()


def test_atomics(order):
    values = rng.integers(0, 8, 100).astype(np.int32)
    bins = np.zeros(8, np.int32)
    calls.run("shared_atomics", values, bins, block=[100], grid=[3])
    assert (bins == 3 * np.bincount(values, minlength=8)).all()


def test_shared_memory_starts_as_nan_in_every_block():
    out = np.zeros(64, np.float32)
    calls.run("poison", None, out, grid=[3], shared=128)
    assert np.isnan(out).all()


def test_static_arrays_keep_apart(order):
    out = probe("static_arrays", None, np.empty(32, np.int32))
    assert (out == 7).all()


def test_cp_async_lands_at_the_wait():
    values = f32(64)
    out = probe("async_groups", values, np.empty((2, 64), np.float32), a=16)
    assert (out[0, :32] == values[:32]).all() and np.isnan(out[0, 32:]).all()
    assert (out[1] == values).all()


@pytest.mark.parametrize("taken", [0, 4, 12])
def test_cp_async_fills_with_zeros(taken):
    values = f32(64)
    out = probe("async_groups", values, np.empty((2, 64), np.float32), a=taken)
    expected = values.reshape(16, 4).copy()
    expected[:, taken // 4 :] = 0
    assert (out[1] == expected.ravel()).all()


def test_cp_async_sizes_and_pipeline(order):
    values = f32(32)
    assert (probe("async_sizes", values, np.empty(32, np.float32)) == values).all()
    values = f32(128)
    out = probe("async_pipeline", values, np.empty(128, np.float32), block=[128])
    assert (out == values[::-1] + values[::-1] + values[::-1]).all()


def test_missing_cp_async_wait_shows_as_nan():
    out = np.zeros(128, np.float32)
    calls.run("async_pipeline", f32(128), out, a=1, block=[128])
    assert np.isnan(out).any()


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(count, transposed, order):
    matrices = rng.integers(0, 1 << 16, (4, 8, 8)).astype(np.uint16)
    out = probe("ldmatrix", matrices, np.empty((count, 32), np.uint32), a=count, b=transposed)
    for i in range(count):
        m = matrices[i].T if transposed else matrices[i]
        for lane in range(32):  # PTX: row lane / 4, elements 2 * (lane % 4) and the next
            low, high = m[lane // 4, lane % 4 * 2 : lane % 4 * 2 + 2].tolist()
            assert out[i, lane] == low | high << 16


def fragments(a, b, d, pack):
    """Registers of all lanes by the tables of the PTX manual, 'Matrix fragments for mma.m16n8k..'.

    pack turns `elements` neighbouring values into one register.
    """
    elements = a.shape[1] // 8
    registers = np.zeros((32, 10), np.uint32)
    for lane in range(32):
        group, k = lane // 4, lane % 4 * elements
        half = a.shape[1] // 2
        rows = [(group, k), (group + 8, k), (group, k + half), (group + 8, k + half)]
        for i, (row, column) in enumerate(rows):
            registers[lane, i] = pack(a[row, column : column + elements])
        for i in range(2):
            registers[lane, 4 + i] = pack(b[k + i * half : k + i * half + elements, group])
        for i in range(4):
            value = d[group + i // 2 * 8, lane % 4 * 2 + i % 2]
            registers[lane, 6 + i] = np.float32(value).view(np.uint32)
    return registers


def unpack_d(out):
    d = np.empty((16, 8), np.float32)
    for lane in range(32):
        for i in range(4):
            d[lane // 4 + i // 2 * 8, lane % 4 * 2 + i % 2] = out[lane, i]
    return d


def bits16(values, dtype):
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype).view(torch.int16).numpy()


def pack16(dtype):
    def pack(values):
        low, high = (int(x) & 0xFFFF for x in bits16(values, dtype))
        return low | high << 16

    return pack


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "tf32"])
def test_mma(kind):
    k = 8 if kind == "tf32" else 16
    a, b, d = f32(16, k), f32(k, 8), f32(16, 8)
    if kind == "tf32":
        number, pack = 2, lambda values: values.view(np.uint32)[0]
        # The low 13 bits do not count: truncated, not rounded.
        seen = [(x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b)]
    else:
        dtype = getattr(torch, kind)
        number, pack = ["float16", "bfloat16"].index(kind), pack16(dtype)
        seen = [torch.from_numpy(x).to(dtype).float().numpy() for x in (a, b)]
    registers = fragments(a, b, d, pack)
    got = unpack_d(probe("mma", registers, np.empty((32, 4), np.float32), a=number))
    left, right = (x.astype(np.float64) for x in seen)
    # k products are added one by one in fp32.
    bound = (k + 1) * 2.0**-24 * (np.abs(left) @ np.abs(right) + np.abs(d))
    assert (np.abs(got - (left @ right + d)) <= bound).all()


def test_matrix_product_through_ldmatrix(order):
    a, b = rng.integers(-8, 8, (16, 16)), rng.integers(-8, 8, (16, 8))
    source = np.concatenate([bits16(x.astype(np.float32), torch.bfloat16).ravel() for x in (a, b)])
    out = probe("matrix_product", source, np.empty((16, 8), np.float32))
    assert (out == a @ b).all()


def interesting_doubles():
    patterns = rng.integers(0, 1 << 16, 4000).astype(np.uint16)
    halves = patterns.view(np.float16).astype(np.float64)
    halves = halves[np.isfinite(halves)]
    midpoints = halves + 2.0 ** (np.floor(np.log2(np.abs(halves) + 1e-30)) - 11)
    noise = midpoints * (1 + rng.standard_normal(halves.size) * 2.0**-30)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 65519.99, 65520, 1e-8, 2.0**-25, 3.4e38, 1e300]
    return np.concatenate([halves, midpoints, noise, special, rng.standard_normal(1000)])


def same(a, b):
    return ((a == b) | (np.isnan(a) & np.isnan(b))).all()


@pytest.mark.parametrize("source", ["float32", "float64"])
def test_conversions_round_once(source):
    values = interesting_doubles()
    with np.errstate(over="ignore"):
        values = values.astype(source)
    n = values.size
    out = np.empty((n, 3), np.uint32)
    probe("narrow", values, out, a=source == "float64", b=n, grid=[n // 128 + 1], block=[128])
    half = out[:, 0].astype(np.uint16).view(np.float16).astype(np.float64)
    with np.errstate(over="ignore"):
        assert same(half, values.astype(np.float16).astype(np.float64))
    bfloat16 = (out[:, 1] << 16).view(np.float32)
    if source == "float32":
        expected = torch.from_numpy(values).bfloat16().float().numpy()
        assert same(bfloat16, expected)
        assert (np.signbit(bfloat16) == np.signbit(expected))[~np.isnan(values)].all()
        tf32 = out[:, 2].view(np.float32)
        finite = np.isfinite(values) & np.isfinite(tf32)
        error = np.abs(tf32[finite].astype(np.float64) - values[finite])
        ulp = 2.0 ** (np.maximum(np.floor(np.log2(np.abs(values[finite]) + 1e-45)), -126) - 10)
        assert (error <= ulp / 2).all() and not (out[:, 2][finite.nonzero()] & 0x1FFF).any()
    else:
        finite = np.isfinite(values) & (np.abs(values) < 3e38)
        exact = np.frexp(values[finite])[0] * 256  # 8 bits of precision, ties to even
        expected = np.ldexp(np.rint(exact) / 256, np.frexp(values[finite])[1])
        normal = np.abs(values[finite]) > 2.0**-120
        assert same(bfloat16[finite][normal], expected[normal].astype(np.float32))


def test_every_16_bit_pattern_widens():
    patterns = np.arange(1 << 16).astype(np.uint16)
    out = np.empty((1 << 16, 2), np.float32)
    probe("widen", patterns, out, b=1 << 16, grid=[512], block=[128])
    assert same(out[:, 0], patterns.view(np.float16).astype(np.float32))
    assert same(out[:, 1], (patterns.astype(np.uint32) << 16).view(np.float32))


REFUSED = {
    "barrier_after_exit": "divergent barrier",
    "barrier_at_two_places": "divergent barrier",
    "barrier_against_shuffle": "no thread can go on",
    "shuffle_after_exit": "(divergent warp operation|no thread can go on)",
    "shuffle_skipped": "no thread can go on.*threads 0-2 at __shfl_xor_sync.*3 at __syncthreads",
    "shuffle_masks_differ": "no thread can go on|divergent warp operation",
    "shuffle_outside_mask": "missing from its own mask",
    "shuffle_from_nobody": "reads lane 4|does not take part",
    "mma_in_half_a_warp": "no thread can go on|divergent",
    "misaligned_pack": "misaligned",
    "too_much_static": "exceeds the limit",
    "ldmatrix_misaligned": "misaligned",
    "async_to_global": "not shared memory",
}


@pytest.mark.parametrize("name", REFUSED)
def test_misuse_is_refused(name, order):
    source, out = f32(1024), np.empty(1024, np.float32)
    with pytest.raises(RuntimeError, match=REFUSED[name]):
        calls.run(name, source, out)
    # The next launch is not affected.
    assert (probe("block_sum", np.ones(64, np.float32), out[:64], block=[64]) == 64).all()


@pytest.mark.parametrize("options", [{"a": 1}, {"a": 2}, {"b": 1}])
def test_misaligned_cp_async_is_refused(options):
    with pytest.raises(RuntimeError, match="misaligned"):
        calls.run("async_misaligned", f32(64), None, **options)


@pytest.mark.parametrize("name", ["async_beyond", "ldmatrix_beyond"])
def test_instructions_beyond_dynamic_memory_are_refused(name):
    calls.run(name, f32(128), None, shared=512)
    with pytest.raises(RuntimeError, match="out of bounds"):
        calls.run(name, f32(128), None, shared=496)


def test_launch_limits(shared_limit):
    out = np.empty(1 << 20, np.int32)
    for options in ({"block": [1025]}, {"block": [1, 1, 65]}, {"grid": [1, 65536]}, {"grid": [0]}):
        with pytest.raises(RuntimeError, match="invalid configuration"):
            calls.run("indices", None, out, **options)
    out = np.empty(64, np.float32)
    calls.run("poison", None, out, shared=48 * 1024)
    with pytest.raises(RuntimeError, match="invalid argument"):
        calls.run("poison", None, out, shared=48 * 1024 + 16)
    calls.run("poison", None, out, shared=98 * 1024, shared_attribute=98 * 1024)
    shared_limit(97 * 1024)
    with pytest.raises(RuntimeError, match="invalid argument"):
        calls.run("poison", None, out, shared=98 * 1024, shared_attribute=98 * 1024)
    with pytest.raises(RuntimeError, match="exceeds the limit"):  # 128 static bytes on top
        calls.run("poison", None, out, shared=97 * 1024, shared_attribute=97 * 1024)


# ---- Hopper ----

WGMMA_BYTES = 4 * 64 * 16 + 4 * (16 * (3 + 16 * 10) + 48)


def wgmma(dtype=torch.float16, mistake=0, by_copies=False):
    """64 x 128 sums of 32 products of small integers: the result and what it should be."""
    generator = np.random.default_rng(1)
    operands = generator.integers(-8, 8, (192, 32)).astype(np.float32)
    bits = bits16(operands, dtype)
    out = np.zeros((64, 128), np.float32)
    options = {"a": dtype == torch.bfloat16, "b": mistake, "c": by_copies}
    calls.run("wgmma", bits, out, **options, block=[128], shared=WGMMA_BYTES)
    return out, operands[:64] @ operands[64:].T


@pytest.mark.parametrize("by_copies", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_wgmma(dtype, by_copies, order):
    out, expected = wgmma(dtype, by_copies=by_copies)
    assert (out == expected).all()


def test_wgmma_groups_complete_in_order():
    out = np.zeros((128, 4), np.float32)
    calls.run("wgmma_groups", None, out, block=[128], shared=4096)
    assert np.isnan(out[:, 1]).all() and (out[:, [0, 2, 3]] == [1, 1, 2]).all()


@pytest.mark.parametrize("by_copies", [False, True])
def test_operands_are_read_until_the_wait(by_copies):
    try:
        out, expected = wgmma(mistake=11, by_copies=by_copies)
    except RuntimeError as error:
        assert "race in shared memory" in str(error)
    else:
        assert (out[:, 0] != expected[:, 0]).any() and (out[:, 1:] == expected[:, 1:]).all()


WGMMA_REFUSED = {
    1: "has not followed by fence.proxy.async",
    2: "what thread 77 wrote to shared memory and has not followed by fence.proxy.async",
    4: "swizzled operands are not emulated",
    5: "bits outside of its fields",
    6: "no wgmma.fence",
    7: "warps of a warpgroup issued different products",
    8: "lanes of a warp issued different products",
    9: "exits with products in flight",
    10: "register was written while",
    12: "exits with products in flight",
    13: "no wgmma.fence",
    14: "out of bounds",
}


@pytest.mark.parametrize("mistake", WGMMA_REFUSED)
def test_misuse_of_wgmma_is_refused(mistake, order):
    with pytest.raises(RuntimeError, match=WGMMA_REFUSED[mistake]):
        wgmma(mistake=mistake, by_copies=True)


def test_named_barriers(order):
    values = f32(256)
    out = probe("named_barrier", values, np.empty(256, np.float32), block=[256])
    assert (out == 2 * values).all()
    out = probe("named_barriers_in_a_row", values, np.empty(32, np.float32), block=[96])
    assert (out == values[0]).all()


NAMED_REFUSED = {
    1: "no barrier 0",
    2: "no barrier 16",
    3: "bad number of threads 40",
    4: "bad number of threads 256",
    5: "no thread can go on.*at bar.sync",
    6: "belongs to other threads|arrived in part",
    7: "arrived in part",
    8: "divergent barrier",
    9: "divergent barrier|no thread can go on",
}


@pytest.mark.parametrize("mistake", NAMED_REFUSED)
def test_misuse_of_named_barriers_is_refused(mistake, order):
    with pytest.raises(RuntimeError, match=NAMED_REFUSED[mistake]):
        calls.run("named_barrier_misuse", None, None, b=mistake, block=[128])
