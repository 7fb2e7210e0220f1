"""How large a tile may be."""

from __future__ import annotations

import pytest
import torch

from dasr_ops.models import memory
from dasr_ops.models.memory import BAND_BYTES, LEAST_TILE, TILE_BYTES, choose_tile, free_bytes
from dasr_ops.models.tiling import is_out_of_memory, run_in_parts

CPU = torch.device("cpu")


def _choose(height: int, width: int, free: int, monkeypatch, **kwargs: int) -> tuple[int, int]:
    monkeypatch.setattr(memory, "free_bytes", lambda device: free)
    settings = {"channels": 64, "scale": 4, "element_size": 4, **kwargs}
    return choose_tile(height, width, device=CPU, **settings)


@pytest.mark.parametrize("size", [(4000, 6000), (10, 30000), (30000, 10), (1, 1), (700, 700)])
@pytest.mark.parametrize("free", [0, 1 << 28, 1 << 32, 1 << 40])
def test_tiles_fit(size, free, monkeypatch):
    rows, columns = _choose(*size, free, monkeypatch)
    assert 1 <= rows <= size[0]
    assert 1 <= columns <= size[1]
    taken = rows * columns * (5 * 64 * 4 + 2 * 12 * 16)
    floor = LEAST_TILE**2 * (5 * 64 * 4 + 2 * 12 * 16)
    assert taken <= max(min(free // 4, TILE_BYTES["cpu"]), floor)
    assert rows * size[1] * 12 * 16 <= max(BAND_BYTES, LEAST_TILE * size[1] * 12 * 16)


def test_what_memory_allows_is_used(monkeypatch):
    free = 1 << 40
    assert _choose(500, 500, free, monkeypatch) == (500, 500)
    rows, columns = _choose(4000, 6000, free, monkeypatch)
    assert rows * columns > 0.9 * TILE_BYTES["cpu"] / (5 * 64 * 4 + 2 * 12 * 16)
    half = _choose(4000, 6000, free, monkeypatch, element_size=2)
    assert half[0] * half[1] > 1.5 * rows * columns
    kept = _choose(4000, 6000, 2 << 30, monkeypatch, reserved=1 << 30)
    assert kept[0] * kept[1] < 0.6 * rows * columns
    both = _choose(4000, 6000, free, monkeypatch, batch=2)
    assert both[0] * both[1] < 0.6 * rows * columns


def test_free_memory_is_plausible(tmp_path, monkeypatch):
    assert 1 << 20 < free_bytes(CPU) < 1 << 50
    monkeypatch.setattr(memory, "_meminfo", lambda: 3 << 30)
    monkeypatch.setattr(memory, "_control_group", lambda: 1 << 30)
    assert free_bytes(CPU) == 1 << 30
    monkeypatch.setattr(memory, "_control_group", lambda: None)
    assert free_bytes(CPU) == 3 << 30
    monkeypatch.setattr(memory, "_meminfo", lambda: None)
    monkeypatch.setattr(memory, "_pages", lambda: None)
    assert free_bytes(CPU) == 2 << 30


@pytest.mark.parametrize("size", [(40, 61), (61, 40), (33, 32)])
@pytest.mark.parametrize("limit", [10**9, 900, 500])
def test_parts_are_exact(size, limit):
    """A network that sees 2 pixels far, and for which memory runs out above ``limit`` pixels."""
    torch.manual_seed(0)
    kernel = torch.rand(3, 3, 5, 5)
    calls = []

    def network(tile: torch.Tensor) -> torch.Tensor:
        calls.append(tile.shape)
        if tile.shape[2] * tile.shape[3] > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        result = torch.nn.functional.conv2d(tile, kernel, padding=2)
        return result.repeat_interleave(2, 2).repeat_interleave(2, 3)

    image = torch.rand(1, 3, *size)
    whole = torch.nn.functional.conv2d(image, kernel, padding=2)
    expected = whole.repeat_interleave(2, 2).repeat_interleave(2, 3)
    # Sums of 75 products below 1, in another order.
    torch.testing.assert_close(run_in_parts(image, network, 2, 2), expected, rtol=1e-5, atol=0)
    assert (len(calls) > 1) == (limit < size[0] * size[1])


def test_what_cannot_be_halved_fails():
    def network(tile: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        run_in_parts(torch.rand(1, 3, 64, 64), network, 2, 5)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_the_tightest_control_group_counts(tmp_path, monkeypatch):
    def group(folder, limit: str, used: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\ninactive_file 100\nactive_file 7\n")

    group(tmp_path, "max", 9000)
    group(tmp_path / "slice", "5000", 2000)
    group(tmp_path / "slice" / "job", "9000", 1000)
    found = [
        (tmp_path / part, "memory.max", "memory.current") for part in ("", "slice", "slice/job")
    ]
    found.append((tmp_path / "nothing", "memory.max", "memory.current"))
    monkeypatch.setattr(memory, "_control_groups", lambda: iter(found))
    assert memory._control_group() == 5000 - 2000 + 100
    monkeypatch.setattr(memory, "_control_groups", lambda: iter(found[:1]))
    assert memory._control_group() is None
