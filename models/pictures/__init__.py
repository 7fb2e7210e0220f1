"""Pictures in and out: 8 and 16 bits, metadata kept, nothing lost without a word.

`read_picture` gives a `Picture`, upright, in the depth that the file has; `write_picture` writes
one, all of it or nothing. `open_animation` and `write_animation` do so for GIF, WebP and APNG.
Whatever cannot be kept is said by a `PictureWarning`, or to what `said_to` names; what cannot be
read at all is a `PictureError`.
"""

from __future__ import annotations

from .alpha import enlarge_alpha, fill_transparent
from .animation import Animation, is_animation, open_animation
from .animation_writer import write_animation
from .errors import PictureError, PictureWarning, said_to
from .formats import ANIMATION_FORMATS, FORMATS, MAX_PIXELS, check_output_size
from .picture import Picture
from .pil import Layers, split
from .reading import read_picture
from .sizes import read_size
from .writing import write_picture

__all__ = [
    "ANIMATION_FORMATS",
    "FORMATS",
    "MAX_PIXELS",
    "Animation",
    "Layers",
    "Picture",
    "PictureError",
    "PictureWarning",
    "check_output_size",
    "enlarge_alpha",
    "fill_transparent",
    "is_animation",
    "open_animation",
    "read_picture",
    "read_size",
    "said_to",
    "split",
    "write_animation",
    "write_picture",
]
