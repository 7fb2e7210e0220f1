"""The evaluation itself: samples through methods into records."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dasr_ops.models.pictures import PictureError
from dasr_ops.models.tiling import is_out_of_memory
from dasr_ops.models.upscale import NonFiniteError

from ..watch.samples import Sample, SampleSet
from ..watch.scores import Means, Scores
from .methods import Method
from .vector import VectorErrors

if TYPE_CHECKING:
    from .journal import Journal


@dataclass(frozen=True)
class Record:
    """One picture restored by one method.

    Attributes:
        method: as in tables.
        level: of degradation.
        name: of the picture.
        draw: of its degradations at this level.
        scores: metric -> value.
        seconds: what the method took; for files, their reading.
    """

    method: str
    level: str
    name: str
    draw: int
    scores: dict[str, float]
    seconds: float


@dataclass
class Evaluation:
    """What came out.

    Attributes:
        records: in the order of computation.
        failed: picture -> reason.
        vector: errors of the degradation vector, or None.
    """

    records: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    vector: VectorErrors | None = None

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return method -> level -> metric -> mean; "seconds" is among the metrics."""
        methods: dict[str, Means] = {}
        for record in self.records:
            scores = record.scores | {"seconds": record.seconds}
            methods.setdefault(record.method, Means()).add(record.level, scores)
        return {name: means.result() for name, means in methods.items()}


@dataclass
class Found:
    """What came out of one picture of ground truth.

    Attributes:
        records: in the order of computation.
        failed: picture -> reason.
        vectors: level, predicted and true degradation vector of each sample.
    """

    records: list[Record] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    vectors: list[tuple[str, list[float], list[float]]] = field(default_factory=list)


def evaluate(
    samples: SampleSet,
    methods: Mapping[str, Method],
    scores: Scores,
    *,
    names: Sequence[str] | None = None,
    vector: VectorErrors | None = None,
    predict: Callable[[Tensor], Tensor] | None = None,
    journal: Journal | None = None,
    failed: Callable[[str, str], None] | None = None,
    done: Callable[[str], None] | None = None,
) -> Evaluation:
    """Restore every sample by every method, and score the results.

    A picture that cannot be read, restored or scored is reported, and the others go on.

    Args:
        samples: the pictures.
        methods: by their names in tables.
        scores: how to score.
        names: names of pictures among ``samples.names``; default: all.
        vector: takes the errors of P's predictions; needs ``predict``.
        predict: LR float [1, 3, h, w] in 0..1 -> v [1, 33].
        journal: has what was found before, and is told what is found now.
        failed: told name and reason at once.
        done: told the name of each picture at its end.
    """
    result = Evaluation(vector=vector)
    for name in samples.names if names is None else names:
        found = None if journal is None else journal.get(name)
        if found is None:
            guess = None if vector is None else predict
            found = _found(name, samples, methods, scores, guess, failed)
            scores.forget()
            if journal is not None:
                journal.add(name, found)
        result.records += found.records
        result.failed |= found.failed
        if vector is not None:
            for level, predicted, true in found.vectors:
                vector.add(level, torch.tensor(predicted), torch.tensor(true))
        if done is not None:
            done(name)
    return result


def _found(
    name: str,
    samples: SampleSet,
    methods: Mapping[str, Method],
    scores: Scores,
    predict: Callable[[Tensor], Tensor] | None,
    failed: Callable[[str, str], None] | None,
) -> Found:
    found = Found()

    def fail(name: str, reason: str) -> None:
        if name not in found.failed:
            found.failed[name] = reason
            if failed is not None:
                failed(name, reason)

    for sample in samples.samples(name, fail):
        label = sample.name if sample.level == "pairs" else f"{sample.name} ({sample.level})"
        if min(sample.gt.shape[2:]) < scores.least_side:
            height, width = sample.gt.shape[2:]
            fail(label, f"{width}x{height} is below {scores.least_side} pixels a side")
            continue
        if predict is not None:
            _predict(sample, label, predict, found, fail)
        for method, restore in methods.items():
            try:
                began = time.perf_counter()
                sr = restore(sample)
                seconds = time.perf_counter() - began
                values = scores(sr, _ground_truth(sample, sr, samples.scale))
            except (PictureError, NonFiniteError) as error:
                fail(f"{label}, {method}", str(error))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                fail(f"{label}, {method}", "not enough memory")
            else:
                record = Record(method, sample.level, name, sample.draw, values, seconds)
                found.records.append(record)
    return found


def _predict(
    sample: Sample,
    label: str,
    predict: Callable[[Tensor], Tensor],
    found: Found,
    fail: Callable[[str, str], None],
) -> None:
    if sample.v is None:
        fail(label, "the true degradation vector is not known")
        return
    try:
        v = predict(sample.lr.float() / 255)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fail(f"{label}, v", "not enough memory")
    else:
        found.vectors.append((sample.level, v.flatten().tolist(), sample.v.flatten().tolist()))


def _ground_truth(sample: Sample, sr: Tensor, scale: int) -> Tensor:
    """Return the ground truth, cut to a multiple of the scale if the result was made from that."""
    size = tuple(sr.shape[2:])
    if size == tuple(sample.gt.shape[2:]):
        return sample.gt
    if size != tuple(side - side % scale for side in sample.gt.shape[2:]):
        raise PictureError(
            f"{size[1]}x{size[0]} does not fit its ground truth of "
            f"{sample.gt.shape[3]}x{sample.gt.shape[2]}"
        )
    return sample.gt[:, :, : size[0], : size[1]]
