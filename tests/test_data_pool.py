"""The pool hands out whole pairs."""

import io
import itertools

import numpy as np
import pytest
import torch

from dasr_ops.train.batch import Batch
from dasr_ops.train.data import PairPool


def batch_of(ids, aliased=False, side=4):
    """Pairs that carry their number in all four parts."""
    ids = torch.as_tensor(list(ids))

    def picture(size, offset):
        digits = torch.stack([ids % 251, ids // 251, torch.full_like(ids, offset)], dim=1).byte()
        return digits[:, :, None, None].expand(-1, -1, size, size).contiguous()

    gt = picture(side, 1)
    sharp = gt if aliased else picture(side, 2)
    return Batch(picture(side // 2, 0), gt, sharp, ids[:, None].float().expand(-1, 33).contiguous())


def ids_of(batch, aliased=False):
    """Return the numbers, and check that the parts of each pair agree."""
    ids = batch.v[:, 0].long()
    assert torch.equal(batch.v, ids[:, None].float().expand(-1, 33))
    for offset, part in enumerate((batch.lr, batch.gt, batch.sharp)):
        assert torch.equal(part[:, 0], (ids % 251).byte()[:, None, None].expand_as(part[:, 0]))
        assert torch.equal(part[:, 1], (ids // 251).byte()[:, None, None].expand_as(part[:, 1]))
        assert (part[:, 2] == (1 if aliased and offset == 2 else offset)).all()
    return ids.tolist()


@pytest.mark.parametrize("aliased", [False, True])
def test_pairs_stay_whole_and_come_out_once(aliased):
    pool, numbers = PairPool(40, seed=1), itertools.count()
    rng = np.random.default_rng(0)
    put, out = [], []
    while len(pool) < 40:
        ids = list(itertools.islice(numbers, int(rng.integers(1, 8))))
        batch = batch_of(ids, aliased)
        assert pool.exchange(batch) is batch
        put += ids[: 40 - (len(put))]
    assert len(put) == 40
    kept, mixed = set(put), 0
    for _ in range(400):
        ids = list(itertools.islice(numbers, int(rng.integers(1, 41))))
        handed = pool.exchange(batch_of(ids, aliased))
        assert (handed.sharp is handed.gt) == aliased
        drawn = ids_of(handed, aliased)
        assert len(drawn) == len(ids) and set(drawn) <= kept
        mixed += len(ids) > 1 and max(drawn) - min(drawn) >= len(ids)
        kept = kept - set(drawn) | set(ids)
        out += drawn
    assert len(out) == len(set(out))
    assert mixed > 300


def test_every_place_is_drawn_equally_often():
    pool, total = PairPool(12, seed=3), 3000
    pool.exchange(batch_of(range(12)))
    age = np.zeros(0)
    first = dict.fromkeys(range(12), 0)
    for step in range(1, total):
        ids = [12 + 3 * step + i for i in range(3)]
        first |= dict.fromkeys(ids, step)
        age = np.append(age, [step - first[i] for i in ids_of(pool.exchange(batch_of(ids)))])
    # A pair stays a geometrically distributed time, drawn with p = 3/12 at each step.
    expected, deviation = 4.0, np.sqrt(0.75) / 0.25
    assert abs(age.mean() - expected) < 5 * deviation / np.sqrt(len(age))


@pytest.mark.parametrize("aliased", [False, True])
@pytest.mark.parametrize("steps", [0, 2, 9])
def test_a_restored_pool_goes_on_identically(steps, aliased):
    pool = PairPool(10, seed=2, rank=1)
    batches = [batch_of(range(4 * i, 4 * i + 4), aliased) for i in range(30)]
    for batch in batches[:steps]:
        pool.exchange(batch)
    buffer = io.BytesIO()
    torch.save(pool.state_dict(), buffer)
    later = [ids_of(pool.exchange(batch), aliased) for batch in batches[steps:]]
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert ("sharp" in state) == (steps > 0 and not aliased)
    other = PairPool(10, seed=2, rank=1)
    other.exchange(batches[-1])  # is forgotten
    other.load_state_dict(state)
    assert later == [ids_of(other.exchange(batch), aliased) for batch in batches[steps:]]


def test_a_state_is_a_copy():
    pool = PairPool(4, seed=0)
    pool.exchange(batch_of(range(4)))
    state = pool.state_dict()
    pool.exchange(batch_of(range(4, 8)))
    assert state["v"][:, 0].tolist() == [0, 1, 2, 3]


def test_seed_and_rank_choose_the_draws():
    def drawn(**options):
        pool = PairPool(30, **options)
        pool.exchange(batch_of(range(30)))
        return [ids_of(pool.exchange(batch_of(range(90, 98)))) for _ in range(3)]

    assert drawn(seed=1) == drawn(seed=1, rank=0)
    assert len({str(drawn(seed=s, rank=r)) for s in (1, 2) for r in (0, 1)}) == 4


def test_a_pool_of_another_size_takes_what_fits():
    pool = PairPool(6)
    pool.exchange(batch_of(range(6)))
    small, large = PairPool(4), PairPool(8)
    small.load_state_dict(pool.state_dict())
    large.load_state_dict(pool.state_dict())
    assert (len(small), len(large)) == (4, 6)
    passing = batch_of([100, 101])
    assert large.exchange(passing) is passing and len(large) == 8
    assert set(ids_of(small.exchange(batch_of([100])))) <= {0, 1, 2, 3}


def test_sharpening_may_begin_later():
    pool = PairPool(2)
    pool.exchange(batch_of([0, 1], aliased=True))
    assert torch.equal(pool.exchange(batch_of([2, 3])).sharp[:, 2], torch.ones(2, 4, 4).byte())
    ids_of(pool.exchange(batch_of([4, 5])))


def test_what_does_not_fit_is_refused():
    for name, options in (("size", {"size": 0}), ("seed", {"size": 1, "seed": -1})):
        with pytest.raises(ValueError, match=f"{name}: expected"):
            PairPool(**options)
    pool = PairPool(3)
    with pytest.raises(ValueError, match=r"batch: expected at most size = 3 pairs, got 4"):
        pool.exchange(batch_of(range(4)))
    pool.exchange(batch_of(range(3)))
    with pytest.raises(ValueError, match=r"batch\.lr: expected torch.uint8 \[2, 3, 2, 2\] as in"):
        pool.exchange(batch_of(range(2), side=8))
    with pytest.raises(ValueError, match="state: expected exchanges, lr"):
        pool.load_state_dict({"lr": torch.zeros(1)})
