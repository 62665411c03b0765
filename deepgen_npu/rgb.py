"""An image of any mode as a viewer shows it. Nothing here needs torch."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from .checks import Named, must
from .formatting import format_size


_ORIENTATION = 0x0112
"""The EXIF tag of the orientation."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as a viewer shows it: turned as its EXIF says, transparency over white, 8-bit RGB.

    Grey of more than 8 bits is scaled, floats by the smallest of 1, 255 and 65535 that covers them. Colour profiles
    are not applied.

    Returns:
        A new image, without metadata.

    Raises:
        ValueError: When it has no pixels, or values that are not colours.
    """
    if 0 in image.size:
        raise ValueError(must("the image", "have at least 1 x 1 pixels", Named(format_size(*image.size))))
    mode = image.mode
    image = _upright(image)
    if mode.startswith("I") or mode == "F":
        image = _scaled(image)
    try:
        if mode == "La":
            image = image.convert("LA")
        if mode == "LAB":
            image = _from_lab(image)
        if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
            image = image.convert("RGBA")
            canvas = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(canvas, image)
        rgb = image.convert("RGB")
    except (ValueError, TypeError, KeyError, IndexError, ImportError) as error:
        raise ValueError(f"an image of the mode {mode} cannot be converted to RGB ({error})") from error
    # It contains the orientation, by which the image would be turned again.
    rgb.info.clear()
    return rgb


def to_mask(image: Image.Image) -> Image.Image:
    """A mask as 8-bit grey, 255 where something may be changed: where it is transparent, else where it is white.

    Raises:
        ValueError: As `to_rgb`.
    """
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        upright = _upright(image)
        alpha = upright.convert("RGBA" if upright.mode not in ("LA", "La") else "LA").getchannel("A")
        if alpha.getextrema() != (255, 255):
            return alpha.point([255 - level for level in range(256)])
    return to_rgb(image).convert("L")


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image once it is turned as its EXIF says; nothing is decoded.

    What a PNG says behind its pixels is known once it is loaded.
    """
    # That of PNG decodes the image first.
    turn = _turn(image, Image.Image.getexif)
    sideways = turn in (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
    return (image.height, image.width) if sideways else (image.width, image.height)


def _turn(
    image: Image.Image, exif: Callable[[Image.Image], Image.Exif] = lambda image: image.getexif()
) -> Image.Transpose | None:
    try:
        return _TURNS.get(exif(image).get(_ORIENTATION))
    except Exception:  # Pillow raises anything at broken EXIF, which is then ignored
        return None


def _upright(image: Image.Image) -> Image.Image:
    turn = _turn(image)
    return image if turn is None else image.transpose(turn)


def _scaled(image: Image.Image) -> Image.Image:
    # PIL clips such values at 255 instead of scaling them.
    import numpy as np

    values = np.asarray(image).astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(must("the image", "have finite values", Named("NaN or infinity")))
    largest = values.max()
    full_scale = 65535.0
    if image.mode == "F" and largest <= 255:
        full_scale = 1.0 if largest <= 1 else 255.0
    scale = 255.0 / max(full_scale, largest)
    return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None
    return converted
