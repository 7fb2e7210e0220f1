"""The page: what is where, and which function belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

import gradio as gr

from . import style
from .engine import Engine
from .handlers import EXAMPLE, FORMATS, Handlers
from .session import VIEWS, Sessions
from .uploads import Uploads

_DOWNLOAD = """(address) => {
  if (!address) return;
  const link = document.createElement('a');
  link.href = address;
  link.download = '';
  document.body.appendChild(link);
  link.click();
  link.remove();
}"""


@dataclass
class Page:
    """The parts of the page that change."""

    source: gr.Image
    example: gr.Button
    denoise: gr.Slider
    deblur: gr.Slider
    dejpeg: gr.Slider
    scale: gr.Radio
    weights: gr.Dropdown
    view: gr.Radio
    compare: gr.ImageSlider
    status: gr.HTML
    reading: gr.HTML
    format: gr.Dropdown
    save: gr.Button
    link: gr.Textbox
    notes: gr.HTML

    @property
    def controls(self) -> list[gr.components.Component]:
        """What the result depends on, in the order in which the handlers take it."""
        return [self.denoise, self.deblur, self.dejpeg, self.scale, self.weights]

    @property
    def changing(self) -> list[gr.components.Component]:
        """What the handlers change."""
        return [
            *(self.source, self.scale, self.view, self.compare, self.status, self.reading),
            *(self.save, self.link, self.notes),
        ]


def build(engine: Engine, sessions: Sessions, uploads: Uploads) -> gr.Blocks:
    """Return the page.

    Args:
        engine: what computes.
        sessions: the open tabs.
        uploads: the uploaded files.
    """
    with gr.Blocks(title="DASR", analytics_enabled=False, fill_width=True) as blocks:
        page = _layout(engine)
        _connect(blocks, page, Handlers(engine, sessions, uploads, page))
    blocks.queue(max_size=200, default_concurrency_limit=None, api_open=False)
    return blocks


def _layout(engine: Engine) -> Page:
    names = engine.names
    gr.HTML(style.HEADER)
    with gr.Row(elem_id="columns"):
        with gr.Column(scale=1, min_width=300, elem_id="panel"):
            source = gr.Image(
                label="Picture",
                show_label=False,
                type="filepath",
                image_mode=None,
                sources=["upload", "clipboard"],
                buttons=[],
                height=250,
                interactive=True,
                elem_id="source",
                placeholder="Drop a picture here\nor click to choose one",
            )
            example = gr.Button(
                "Try an example", size="sm", visible=EXAMPLE.is_file(), elem_id="example"
            )
            sliders = [
                gr.Slider(
                    -1, 1, 0, step=0.05, label=label, info=info, elem_id=name, buttons=["reset"]
                )
                for name, label, info in (
                    ("denoise", "Denoise", "How much noise it takes for granted"),
                    ("deblur", "Deblur", "How much blur it undoes"),
                    ("dejpeg", "De-JPEG", "How much compression it expects"),
                )
            ]
            scales = engine.scales(names[0])
            scale = gr.Radio(
                [(f"{scale}×", scale) for scale in scales],
                value=engine.native_scale(names[0]),
                label="Magnification",
                visible=len(scales) > 1,
                elem_id="scale",
            )
            weights = gr.Dropdown(
                names, value=names[0], label="Weights", visible=len(names) > 1, elem_id="weights"
            )
        with gr.Column(scale=3, min_width=320, elem_id="stage"):
            view = gr.Radio(
                list(VIEWS),
                value=VIEWS[0],
                label="View",
                show_label=False,
                container=False,
                visible=False,
                elem_id="view",
            )
            compare = gr.ImageSlider(
                label="Before and after",
                show_label=False,
                type="filepath",
                interactive=False,
                buttons=["fullscreen"],
                max_height=470,
                elem_id="compare",
            )
            status = gr.HTML(elem_id="status")
            reading = gr.HTML(elem_id="reading")
            with gr.Row(elem_id="saving"):
                format = gr.Dropdown(
                    list(FORMATS),
                    value="PNG",
                    label="Format of the file",
                    show_label=False,
                    container=False,
                    min_width=100,
                    scale=0,
                    elem_id="format",
                )
                save = gr.Button(
                    "Download", variant="primary", interactive=False, scale=0, elem_id="save"
                )
                notes = gr.HTML(elem_id="notes")
            link = gr.Textbox(visible=False)
    gr.HTML(style.footer(str(engine.device)))
    return Page(
        source, example, *sliders, scale, weights, view, compare, status, reading, format, save,
        link, notes,
    )  # fmt: skip


def _connect(blocks: gr.Blocks, page: Page, handlers: Handlers) -> None:
    # One computation at a time is the engine's care; here nothing may wait, since what comes later
    # calls off what runs.
    common = {
        "outputs": page.changing,
        "show_progress": "hidden",
        "api_visibility": "undocumented",
        "concurrency_limit": None,
    }

    def run(event: gr.events.Dependency) -> None:
        quick = event.then(handlers.quick, page.controls, trigger_mode="multiple", **common)
        quick.then(handlers.finish, page.controls, trigger_mode="multiple", **common)

    run(page.source.upload(handlers.open, page.source, preprocess=False, **common))
    run(page.example.click(handlers.open_example, **common))
    page.source.clear(handlers.clear, **common)
    run(page.source.select(handlers.point, **common))
    run(page.view.input(handlers.look, page.view, **common))
    run(page.weights.input(handlers.choose_weights, page.weights, **common))
    # While a slider is dragged a detail follows, as fast as it can; the last value is never lost.
    moved = gr.on(
        [page.denoise.change, page.deblur.change, page.dejpeg.change, page.scale.input],
        handlers.quick,
        page.controls,
        trigger_mode="always_last",
        **common,
    )
    moved.then(handlers.finish, page.controls, trigger_mode="multiple", **common)
    written = page.save.click(handlers.write, page.format, **common)
    written.then(None, page.link, js=_DOWNLOAD, show_progress="hidden")
    blocks.unload(handlers.leave)
