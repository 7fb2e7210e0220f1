"""``dasr demo``: a web page on this computer that enlarges pictures.

Nothing here is imported by the rest of the package, and Gradio by `serve` alone.

`tasks`: one computation at a time, which can be called off. `engine`: what is computed.
`regions`: what is shown of it. `session`: what one browser tab has open. `page`, `style`, `text`:
how it looks. `handlers`: what happens when. `server`: HTTP.
"""

from __future__ import annotations

from .server import serve

__all__ = ["serve"]
