"""`Picture`: pixels of 8 or 16 bits, opacity and metadata."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .depth import to_8_bit

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture, upright.

    Raises:
        TypeError: an array is not one of NumPy, or of another dtype.
        ValueError: a shape is not as described.
    """

    color: np.ndarray
    """uint8 or uint16, [H, W] for grey or [H, W, 3] for RGB, not multiplied with the opacity."""
    alpha: np.ndarray | None = None
    """Opacity [H, W] of the same dtype, 0 for invisible."""
    exif: bytes | None = None
    """EXIF data as Pillow has it in ``info["exif"]``, orientation and pixel layout removed."""
    icc_profile: bytes | None = None
    """Colour profile; None for sRGB."""
    xmp: bytes | None = None
    """XMP packet, orientation removed."""
    dpi: tuple[float, float] | None = None
    """Pixels per inch, horizontal and vertical."""
    text: Mapping[str, str] | None = None
    """Text entries of a PNG by keyword, such as Author; only PNG keeps them."""

    def __post_init__(self) -> None:
        color, alpha = self.color, self.alpha
        for name, array in (("color", color), ("alpha", alpha)):
            if array is None and name == "alpha":
                continue
            if not isinstance(array, np.ndarray):
                raise TypeError(
                    f"Picture: {name}: expected a NumPy array, got {type(array).__name__}"
                )
            if array.dtype not in (np.uint8, np.uint16):
                raise TypeError(f"Picture: {name}: expected uint8 or uint16, got {array.dtype}")
        if 0 in color.shape or not (color.ndim == 2 or (color.ndim == 3 and color.shape[2] == 3)):
            raise ValueError(
                "Picture: color: expected [H, W] or [H, W, 3], none of them 0, "
                f"got {list(color.shape)}"
            )
        if alpha is not None and (alpha.shape != color.shape[:2] or alpha.dtype != color.dtype):
            raise ValueError(
                f"Picture: alpha: expected {color.dtype} {list(color.shape[:2])} like color, "
                f"got {alpha.dtype} {list(alpha.shape)}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.color.shape[1], self.color.shape[0]

    @property
    def bits(self) -> int:
        """Bits per channel, 8 or 16."""
        return 8 * self.color.dtype.itemsize

    @classmethod
    def from_pil(cls, image: Image.Image) -> Picture:
        """Take a picture over from Pillow.

        Args:
            image: of any mode but F; palettes and LAB become RGB, CMYK too, through its colour
                profile if it has one; I and I;16 are 16-bit grey. An EXIF orientation is applied.

        Raises:
            PictureError: it is empty, or its values have no meaning here.
            OSError: the file behind it cannot be decoded.
        """
        from .pil import to_picture

        return to_picture(image)

    def to_pil(self) -> Image.Image:
        """Hand the picture over to Pillow, with the metadata in ``info``.

        Returns:
            Mode L, LA, RGB or RGBA, of 8 bits, since Pillow has no deeper colour; I;16 for 16-bit
            grey without opacity. 16 bits are rounded to 8.
        """
        from PIL import Image

        if self.bits == 16 and self.color.ndim == 2 and self.alpha is None:
            image = Image.fromarray(np.ascontiguousarray(self.color))
        else:
            image = Image.fromarray(np.ascontiguousarray(to_8_bit(self.color)))
            if self.alpha is not None:
                image.putalpha(Image.fromarray(np.ascontiguousarray(to_8_bit(self.alpha))))
        for key in ("exif", "icc_profile", "xmp", "dpi"):
            if getattr(self, key):
                image.info[key] = getattr(self, key)
        return image
