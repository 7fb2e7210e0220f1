"""How the page looks: the system's fonts, few colours, nothing from elsewhere."""

from __future__ import annotations

import html

import gradio as gr

HEADER = """
<header class="top">
  <h1>DASR</h1>
  <p>Enlarges photographs. Blur, noise and compression are measured first, then undone.</p>
</header>
"""


def footer(device: str) -> str:
    """Return the last line of the page."""
    return (
        f'<footer class="end">Computed on this computer ({html.escape(device)}). '
        "Pictures stay on it and are removed when the page is closed.</footer>"
    )


def theme() -> gr.Theme:
    """Return colours and fonts."""
    sans = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]
    return gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        neutral_hue=gr.themes.colors.stone,
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
        font=sans,
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    ).set(
        body_background_fill="#faf9f7",
        body_background_fill_dark="#161513",
        body_text_color="#292524",
        body_text_color_dark="#e7e5e4",
        body_text_color_subdued="#6b655f",
        body_text_color_subdued_dark="#a8a29e",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#1f1d1b",
        block_background_fill="#ffffff",
        block_background_fill_dark="#1f1d1b",
        block_border_color="#e7e4df",
        block_border_color_dark="#33302d",
        border_color_primary="#e0dcd6",
        border_color_primary_dark="#3d3935",
        block_label_text_color="#57534e",
        block_label_text_color_dark="#c4beb8",
        block_title_text_color="#292524",
        block_title_text_color_dark="#e7e5e4",
        block_title_text_weight="500",
        block_info_text_color="#6b655f",
        block_info_text_color_dark="#a8a29e",
        input_background_fill="#f5f3f0",
        input_background_fill_dark="#282523",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#115e59",
        button_primary_background_fill_dark="#0f766e",
        button_primary_background_fill_hover_dark="#0d9488",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="transparent",
        button_secondary_background_fill_dark="transparent",
        button_secondary_background_fill_hover="#efece8",
        button_secondary_background_fill_hover_dark="#2b2826",
        button_secondary_text_color="#44403c",
        button_secondary_text_color_dark="#d6d3d1",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        checkbox_label_background_fill_hover="#efece8",
        checkbox_label_background_fill_hover_dark="#2b2826",
        slider_color="#0f766e",
        slider_color_dark="#2dd4bf",
    )


CSS = """
.gradio-container { width: 100% !important; max-width: 1440px !important; }
.gradio-container { margin: 0 auto !important; }
.gradio-container main, #columns { width: 100% !important; }
footer:not(.end) { display: none !important; }

.top { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 16px; padding: 4px 2px; }
.top h1 { margin: 0; font-size: 22px; font-weight: 650; letter-spacing: .06em; }
.top p, .end { margin: 0; color: var(--body-text-color-subdued); }
.end { padding: 12px 2px; font-size: 13px; border-top: 1px solid var(--block-border-color); }

#columns { gap: 24px; }
#panel { gap: 12px; max-width: 360px; }
#stage { gap: 10px; }
#source { border-radius: 8px; }
#example { border: 1px solid var(--border-color-primary); font-weight: 500; min-height: 36px; }

/* The three corrections go both ways from the middle: the track is plain, the middle is marked. */
#denoise, #deblur, #dejpeg {
  --track: #d6d1ca; --slider-color: var(--track); --neutral-200: var(--track);
}
.dark :is(#denoise, #deblur, #dejpeg) { --track: #4b4641; }
:is(#denoise, #deblur, #dejpeg) .slider_input_container { position: relative; }
:is(#denoise, #deblur, #dejpeg) .slider_input_container::before {
  content: ""; position: absolute; left: calc(50% - 1px); top: 50%; width: 2px; height: 14px;
  transform: translateY(-50%); background: var(--body-text-color-subdued); opacity: .6;
}
:is(#denoise, #deblur, #dejpeg) input:focus-visible { outline: 2px solid #0d9488; }
:is(#denoise, #deblur, #dejpeg) :is(.min_value, .max_value) { display: none; }

#status, #reading, #notes, .html-container { padding: 0 !important; }
#compare { border-radius: 8px; background: var(--block-background-fill); }
#compare:not(:has(img)) { min-height: 240px; }
#compare:not(:has(img))::after {
  content: "The result appears here, beside plain bicubic enlargement.";
  position: absolute; inset: 0; display: grid; place-items: center; padding: 24px;
  text-align: center; color: var(--body-text-color-subdued);
}
#compare .empty .icon { visibility: hidden; }
#compare:has(img)::before, #compare:has(img)::after {
  position: absolute; bottom: 12px; z-index: 30; padding: 2px 10px; border-radius: 999px;
  font-size: 12px; line-height: 20px; color: #fff; background: rgb(20 18 16 / .62);
  pointer-events: none;
}
#compare:has(img)::before { content: "Before: bicubic"; left: 12px; }
#compare:has(img)::after { content: "After: DASR"; right: 12px; }

#status { min-height: 34px; }
.note { margin: 0; color: var(--body-text-color-subdued); font-size: 14px; line-height: 22px; }
.note:empty { display: none; }
.note.failure { color: #b42318; font-weight: 500; }
.dark .note.failure { color: #fda29b; }
.bar { height: 4px; margin-top: 6px; border-radius: 2px; overflow: hidden;
  background: var(--border-color-primary); }
.bar span { display: block; height: 100%; background: var(--slider-color); transition: width .2s; }
.bar.busy span { width: 30%; animation: busy 1.4s ease-in-out infinite alternate; }
@keyframes busy { from { margin-left: 0 } to { margin-left: 70% } }
@media (prefers-reduced-motion: reduce) { .bar.busy span { animation: none; width: 100% } }

.reading { padding-top: 10px; border-top: 1px solid var(--block-border-color); }
.reading h2 { margin: 0 0 6px; font-size: 14px; font-weight: 500; }
.reading dl { margin: 0; }
.reading dt, .reading dd { margin: 0; font-weight: 400; }
.reading dt, .reading summary { font-size: 13px; color: var(--body-text-color-subdued); }
.reading dd { font-variant-numeric: tabular-nums; }
.reading .summary { display: flex; flex-wrap: wrap; gap: 4px 32px; }
.reading .summary dd { font-size: 16px; }
.reading summary { cursor: pointer; padding: 8px 0 4px; }
.reading .steps > div { display: grid; grid-template-columns: 140px 1fr; gap: 12px; }
.reading .steps dd { font-size: 14px; }

#saving { align-items: center; gap: 12px; }
#format { flex: 0 0 110px; }
#save { flex: 0 0 140px; min-height: 40px; }
#notes { flex: 1 1 200px; }

@media (max-width: 760px) {
  /* The result comes before the corrections, so that it is seen while they are moved. */
  #columns { flex-direction: column; gap: 12px; }
  #panel { display: contents; }
  #source, #example { order: 1; }
  #stage { order: 2; }
  #panel > .form { order: 3; }
  #stage { width: 100%; min-width: 0 !important; }
  .top p { font-size: 14px; }
  .gradio-container main { padding: 16px !important; }
}
"""
