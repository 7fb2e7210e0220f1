"""Reads networks in ncnn's format: a text file of layers beside a file of their weights.

The text (``.param``) begins with a magic number and the numbers of layers and blobs; then each line
is a layer: its type, its name, how many blobs it reads and writes, their names, and parameters
``number=value``; numbers of -23300 and below announce an array, its length first. The other file
(``.bin``) holds the weights in the order of the layers. Kernels begin with a tag: 0 for float32,
0x01306B47 for float16, padded to 4 bytes; biases and slopes are float32 without a tag.
(https://github.com/Tencent/ncnn/wiki, "param and model file structure")
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_MAGIC = "7767517"
_ARRAY = -23300
_FLOAT32, _FLOAT16 = 0, 0x01306B47

Value = float | list[float]


class NcnnError(ValueError):
    """Files that are not a network of ncnn, or not one that can be read here."""


@dataclass
class Layer:
    """A layer of an ncnn network."""

    kind: str
    """As ncnn names it: ``Convolution``, ``PReLU`` ..."""
    name: str
    inputs: list[str]
    """Names of the blobs that it reads."""
    outputs: list[str]
    params: dict[int, Value] = field(default_factory=dict)
    """Parameters by number, arrays by the number that they stand for."""
    weight: Tensor | None = None
    """A kernel [O, I, kh, kw], or the slopes [C] of a PReLU, float32."""
    bias: Tensor | None = None
    """[O], float32."""

    def number(self, key: int, default: float = 0) -> float:
        """Return the parameter ``key``, or the default.

        Raises:
            NcnnError: it is an array.
        """
        value = self.params.get(key, default)
        if isinstance(value, list):
            raise NcnnError(f"{self.name}: parameter {key}: expected a number, got {value}")
        return value

    def integer(self, key: int, default: int = 0) -> int:
        """Return the parameter ``key`` as an int.

        Raises:
            NcnnError: it is none.
        """
        value = self.number(key, default)
        if value != int(value):
            raise NcnnError(f"{self.name}: parameter {key}: expected an integer, got {value}")
        return int(value)

    def array(self, key: int) -> list[float]:
        """Return the parameter ``key``, empty where it is not given.

        Raises:
            NcnnError: it is a number.
        """
        value = self.params.get(key, [])
        if not isinstance(value, list):
            raise NcnnError(f"{self.name}: parameter {key}: expected an array, got {value}")
        return value


def read_network(param: str | os.PathLike[str], bin: str | os.PathLike[str]) -> list[Layer]:
    """Read the layers of a network, with their weights as float32.

    Args:
        param: the text file.
        bin: the file of weights, all of which must be used up.

    Raises:
        NcnnError: a file is broken, the two do not belong together, or a kernel is neither float32
            nor float16.
        OSError: a file cannot be read.
    """
    try:
        lines = Path(param).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise NcnnError(f"{param}: expected the text of an ncnn network, got binary data") from None
    lines = [line for line in lines if line.strip()]
    if not lines or lines[0].strip() != _MAGIC:
        raise NcnnError(f"{param}: expected the magic number {_MAGIC} in the first line")
    try:
        count = int(lines[1].split()[0])
    except (IndexError, ValueError):
        raise NcnnError(f"{param}: expected the number of layers in the second line") from None
    if count != len(lines) - 2:
        raise NcnnError(f"{param}: expected {count} layers, got {len(lines) - 2}")
    weights = _Weights(bin)
    layers = []
    for number, line in enumerate(lines[2:], 3):
        try:
            layer = _parse(line)
        except (ValueError, IndexError):
            raise NcnnError(f"{param}: line {number}: not a layer: {line[:80]!r}") from None
        _load(layer, weights)
        layers.append(layer)
    weights.finish()
    return layers


def _parse(line: str) -> Layer:
    kind, name, num_inputs, num_outputs, *rest = line.split()
    first, last = int(num_inputs), int(num_inputs) + int(num_outputs)
    if min(first, last - first) < 0 or len(rest) < last:
        raise ValueError
    layer = Layer(kind, name, rest[:first], rest[first:last])
    for text in rest[last:]:
        key, _, value = text.partition("=")
        number = int(key)
        if number > _ARRAY:
            layer.params[number] = float(value)
            continue
        length, *values = value.split(",")
        if int(length) != len(values):
            raise ValueError
        layer.params[_ARRAY - number] = [float(entry) for entry in values]
    return layer


def _load(layer: Layer, weights: _Weights) -> None:
    if layer.kind == "Convolution":
        outputs, width = layer.integer(0), layer.integer(1)
        height, count = layer.integer(11, width), layer.integer(6)
        inputs = count // max(outputs * height * width, 1)
        if inputs < 1 or inputs * outputs * height * width != count:
            raise NcnnError(
                f"{layer.name}: {count} weights are not those of {outputs} kernels of "
                f"{height}x{width}"
            )
        layer.weight = weights.tagged(layer.name, (outputs, inputs, height, width))
        if layer.integer(5):
            layer.bias = weights.plain(layer.name, outputs)
    elif layer.kind == "PReLU":
        layer.weight = weights.plain(layer.name, layer.integer(0))


class _Weights:
    """The file of weights, read from its beginning to its end."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path, self._data, self._at = path, Path(path).read_bytes(), 0

    def plain(self, name: str, count: int) -> Tensor:
        return self._take(name, count, "<f4")

    def tagged(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tag = int(self._take(name, 1, "<u4"))
        if tag not in (_FLOAT32, _FLOAT16):
            raise NcnnError(
                f"{self._path}: {name}: expected weights in float32 or float16, got tag {tag:#010x}"
            )
        count = math.prod(shape)
        values = self._take(name, count, "<f2" if tag == _FLOAT16 else "<f4")
        return values.view(shape)

    def finish(self) -> None:
        if self._at != len(self._data):
            raise NcnnError(
                f"{self._path}: expected {self._at} bytes for the layers, got {len(self._data)}"
            )

    def _take(self, name: str, count: int, dtype: str) -> Tensor:
        size = count * np.dtype(dtype).itemsize
        end = self._at + -(-size // 4) * 4
        if count < 0 or end > len(self._data):
            raise NcnnError(f"{self._path}: ends within the weights of {name}")
        values = np.frombuffer(self._data, dtype, count, self._at)
        self._at = end
        return torch.from_numpy(values.astype(np.int64 if dtype == "<u4" else np.float32))
