"""Reading one photo: whatever a camera, a phone or an editor wrote, to uint8 RGB, or one clear error."""

import hashlib
import io
import logging
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from metalora.core.errors import UserError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"})
"""File names (lower case) that count as photos in a folder."""
_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP")  # not what Pillow hands to outside programs
_SIXTEEN_BIT_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_EXPECTED = "a JPEG, PNG, WebP, TIFF or BMP photo"
_log = logging.getLogger(__name__)


def load_photo(path: Path, *, min_side: int = 32, max_pixels: int = 100_000_000, key: str = "image") -> np.ndarray:
    """Read a photo as uint8 RGB [H, W, 3].

    Rotated as its EXIF tag says, embedded colour profiles (CMYK too) converted to sRGB, transparency laid over
    white, 16-bit and gray photos brought to 8-bit RGB. Of a file with several pictures the first counts.

    Args:
        path: the file; its content decides, not its name.
        min_side: the shorter side must have at least this many pixels.
        max_pixels: refuse files that unpack to more, before unpacking them.
        key: the configuration key that named the file, for the error message.

    Raises:
        UserError: missing, empty, not an image, truncated or damaged, too large, too small, of floating-point numbers.
    """
    path = Path(path)
    data = _read_bytes(path, key=key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns below the size at which it refuses; max_pixels decides
        image = _open(data, path=path, max_pixels=max_pixels, key=key)
        with image:
            if image.width * image.height > max_pixels:
                raise _too_large(
                    path,
                    got=f"{image.width} x {image.height} = {image.width * image.height} pixels",
                    max_pixels=max_pixels,
                    key=key,
                )
            if image.mode == "F":
                raise UserError(
                    f"the photo {path} is of floating-point numbers",
                    expected="8 or 16 bits a channel: of those it is known what is black and what is white",
                    got="Pillow's mode F",
                    key=key,
                )
            try:
                image.load()
                rgb = _to_rgb(_upright(image, path=path))
            except UserError:
                raise
            except Exception as error:  # decoders raise nearly anything on damaged files
                raise UserError(
                    f"the photo {path} is truncated or damaged",
                    expected="a file that can be read to its end",
                    got=_first_line(error),
                    key=key,
                ) from None
    if min(rgb.size) < min_side:
        raise UserError(
            f"the photo {path} is too small",
            expected=f"at least {min_side} pixels on the shorter side",
            got=f"{rgb.width} x {rgb.height}",
            key=key,
        )
    return np.asarray(rgb).copy()


def pixel_sha256(pixels: np.ndarray) -> str:
    """Content hash of a uint8 picture: its shape and its pixels, nothing of the file around them."""
    digest = hashlib.sha256(repr(pixels.shape).encode())
    digest.update(np.ascontiguousarray(pixels).tobytes())
    return digest.hexdigest()


def _read_bytes(path: Path, *, key: str) -> bytes:
    if path.is_dir():
        raise UserError(f"{path} is a folder", expected="a photo", key=key)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"there is no photo {path}", expected="an existing file", key=key) from None
    except OSError as error:
        raise UserError(f"cannot read the photo {path}", got=error.strerror or str(error), key=key) from None
    if not data:
        raise UserError(f"the photo {path} is empty", expected=_EXPECTED, got="0 bytes", key=key)
    return data


def _open(data: bytes, *, path: Path, max_pixels: int, key: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:  # Pillow's own limit is 179 million pixels
        pixels = re.search(r"\d+", str(error))
        raise _too_large(
            path, got=f"{pixels.group() if pixels else 'more'} pixels", max_pixels=max_pixels, key=key
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{path} is not an image", expected=_EXPECTED, got=_guess(data), key=key) from None
    except Exception as error:
        raise UserError(f"the photo {path} is damaged", expected=_EXPECTED, got=_first_line(error), key=key) from None


def _too_large(path: Path, *, got: str, max_pixels: int, key: str) -> UserError:
    return UserError(f"the photo {path} is too large", expected=f"at most {max_pixels} pixels", got=got, key=key)


def _upright(image: Image.Image, *, path: Path) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # the pixels are fine, only the tag is not
        _log.warning("%s: its EXIF data cannot be read (%s); taken as not rotated", path, _first_line(error))
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT_MODES:
        return _sixteen_bit_to_rgb(image)
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        rgba = image.convert("RGBA")
        alpha = rgba.getchannel("A")
        colour = _to_srgb(rgba.convert("RGB"), profile=image.info.get("icc_profile"))
        white = Image.new("RGB", rgba.size, (255, 255, 255))
        return Image.composite(colour, white, alpha)
    return _to_srgb(image, profile=image.info.get("icc_profile"))


def _sixteen_bit_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow's own convert() clips these modes to white instead of scaling them."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("gray values outside 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8)).convert("RGB")


def _to_srgb(image: Image.Image, *, profile: Any) -> Image.Image:
    if profile and image.mode in ("RGB", "CMYK"):
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert converted is not None  # None comes only with inPlace
            return converted
        except (ImageCms.PyCMSError, OSError):
            _log.debug("unusable colour profile ignored")
    return image.convert("RGB")


def _guess(data: bytes) -> str:
    """Name the two things that people most often pass instead."""
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "HEIC or AVIF, which cannot be read: save it as JPEG"
    if data[:4] == b"%PDF":
        return "a PDF"
    return "a text file" if b"\0" not in data[:512] and data[:512].isascii() else "something else"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
