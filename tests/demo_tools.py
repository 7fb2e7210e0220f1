"""What the tests of the demo share: tiny networks, and a page without a browser."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from dasr_ops.demo.engine import Engine
from dasr_ops.demo.tasks import Task
from dasr_ops.models import DASR, Degradation_Predictor, MSRResNetDynamic
from dasr_ops.models.pictures import Picture


def tiny_model(scale: int = 2, seed: int = 0) -> DASR:
    torch.manual_seed(seed)
    net_g = MSRResNetDynamic(num_feat=4, num_block=1, num_models=2, upscale=scale)
    return DASR(net_g, Degradation_Predictor(nf=4, num_networks=2))


@contextmanager
def tiny_engine(*names: str) -> Iterator[Engine]:
    """The engine of a page that offers tiny networks, by the names of their magnifications."""
    scales = {"two": 2, "four": 4}
    models = {name: tiny_model(scales[name], seed) for seed, name in enumerate(names)}
    engine = Engine(models, device="cpu", tile=64)
    try:
        yield engine
    finally:
        engine.worker.close()


def predicted(engine: Engine, picture: Picture, weights: str) -> torch.Tensor:
    return engine.predict(picture, weights, Task())


def difference(a: np.ndarray, b: np.ndarray) -> int:
    assert a.shape == b.shape
    return int(np.abs(a.astype(int) - b.astype(int)).max())


def noise(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@cache
def layout(engine):
    import gradio as gr

    from dasr_ops.demo import page

    with gr.Blocks(analytics_enabled=False):
        return page._layout(engine)


def put(uploads: Path, name: str, content: bytes) -> Path:
    """Put an uploaded file where Gradio puts it."""
    target = uploads / hashlib.sha256(content).hexdigest() / name
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(content)
    return target


class Tab:
    """One browser tab: calls the handlers as the page does and remembers what it shows."""

    def __init__(self, engine, folder: Path, name: str = "tab", sessions=None) -> None:
        from dasr_ops.demo.handlers import Handlers
        from dasr_ops.demo.session import Sessions
        from dasr_ops.demo.uploads import Uploads

        self.uploads = Uploads(folder / "uploads")
        self.sessions = sessions or Sessions(folder / "sessions")
        self.page = layout(engine)
        self.handlers = Handlers(engine, self.sessions, self.uploads, self.page)
        self.request = SimpleNamespace(session_hash=name)
        self.shown: dict[str, object] = {}
        self.controls = {
            **{"denoise": 0.0, "deblur": 0.0, "dejpeg": 0.0},
            **{"scale": engine.native_scale(engine.names[0]), "weights": engine.names[0]},
        }

    @property
    def session(self):
        return self.sessions.get(self.request.session_hash)

    def upload(self, path: Path) -> Path:
        """Open a file as an upload; returns where the upload was."""
        target = put(self.uploads.folder, path.name, path.read_bytes())
        self.open({"path": str(target), "orig_name": path.name})
        return target

    def open(self, upload: object) -> None:
        """Take for an upload what the browser says."""
        self.take(self.handlers.open(upload, self.request))

    def write(self, format: str = "PNG"):
        return self.handlers.write(format, self.request)

    def quick(self, **changes):
        self.controls |= changes
        return self.handlers.quick(*self.controls.values(), self.request)

    def finish(self):
        return self.handlers.finish(*self.controls.values(), self.request)

    def run(self, **changes) -> None:
        """Set controls and wait for the whole picture."""
        for step in (self.quick(**changes), self.finish()):
            for update in step:
                self.take(update)

    def take(self, update) -> None:
        names = {component: name for name, component in vars(self.page).items()}
        named = {names[component]: value for component, value in update.items()}
        # Gradio's word for "as it was".
        self.shown |= {n: v for n, v in named.items() if v != {"__type__": "update"}}

    def image(self, which: int) -> np.ndarray:
        """What the comparison shows: 0 before, 1 after."""
        with Image.open(self.shown["compare"][which]) as image:
            return np.asarray(image)
