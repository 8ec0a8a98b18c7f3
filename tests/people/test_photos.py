"""Photos as people have them: every odd file gives the right pixels or one clear line."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from metalora.core.errors import UserError
from metalora.people.photos import load_photo, pixel_sha256


def gradient(height: int = 48, width: int = 64) -> np.ndarray:
    """A picture whose four corners differ, so that a wrong rotation shows."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([y * 255 // (height - 1), x * 255 // (width - 1), np.full_like(x, 40)], axis=2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "webp", "tiff", "bmp"])
def test_lossless_formats_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(gradient()).save(path, **({"lossless": True} if suffix == "webp" else {}))
    photo = load_photo(path)
    assert photo.dtype == np.uint8
    assert np.array_equal(photo, gradient())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path: Path, orientation: int) -> None:
    upright = gradient()
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(load_photo(tmp_path / "photo.png"), upright)


def test_a_broken_exif_block_costs_the_rotation_not_the_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.fromarray(gradient()).save(tmp_path / "photo.png", exif=b"Exif\0\0XX*\0garbage")
    assert np.array_equal(load_photo(tmp_path / "photo.png"), gradient())
    assert "EXIF" in caplog.text


def test_transparency_is_laid_over_white(tmp_path: Path) -> None:
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[..., 0], rgba[:, :20, 3], rgba[:, 20:, 3] = 200, 255, 0
    Image.fromarray(rgba).save(tmp_path / "photo.png")
    photo = load_photo(tmp_path / "photo.png")
    assert photo[0, 0].tolist() == [200, 0, 0]
    assert photo[0, 39].tolist() == [255, 255, 255]


def test_a_palette_with_a_transparent_colour_is_laid_over_white(tmp_path: Path) -> None:
    image = Image.new("P", (40, 40), 1)
    image.putpalette([10, 20, 30, 90, 80, 70])
    image.paste(0, (0, 0, 20, 40))
    image.save(tmp_path / "photo.png", transparency=0)
    photo = load_photo(tmp_path / "photo.png")
    assert photo[0, 0].tolist() == [255, 255, 255]
    assert photo[0, 39].tolist() == [90, 80, 70]


def test_gray_has_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(gradient()[..., 1]).save(tmp_path / "photo.png")
    assert np.array_equal(load_photo(tmp_path / "photo.png"), np.repeat(gradient()[..., 1:2], 3, axis=2))


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64 * 48).reshape(48, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / f"photo.{suffix}")
    photo = load_photo(tmp_path / f"photo.{suffix}")
    assert np.abs(photo[..., 0].astype(float) - values / 257).max() <= 0.5
    assert len(np.unique(photo)) == 256


def test_16_bit_colour_keeps_its_colours(tmp_path: Path) -> None:
    write_png_rgb16(tmp_path / "photo.png", gradient().astype(np.uint16) * 257)
    assert np.abs(load_photo(tmp_path / "photo.png").astype(int) - gradient()).max() <= 1


def test_cmyk_is_converted_right_way_round(tmp_path: Path) -> None:
    Image.new("CMYK", (64, 48), (0, 255, 255, 0)).save(tmp_path / "photo.jpg")
    assert np.abs(load_photo(tmp_path / "photo.jpg").astype(int) - [255, 0, 0]).max() <= 4


def test_an_embedded_colour_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    lab_like = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(gradient()).save(tmp_path / "srgb.png", icc_profile=srgb)
    Image.fromarray(gradient()).save(tmp_path / "odd.png", icc_profile=lab_like)
    Image.fromarray(gradient()).save(tmp_path / "broken.png", icc_profile=b"no profile")
    assert np.abs(load_photo(tmp_path / "srgb.png").astype(int) - gradient()).max() <= 2
    assert np.array_equal(load_photo(tmp_path / "broken.png"), gradient())
    assert load_photo(tmp_path / "odd.png").shape == (48, 64, 3)


def bad_photos(folder: Path) -> dict[str, Path]:
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    paths = {name: folder / f"{name}.jpg" for name in ("truncated", "empty", "text", "tiny", "heic", "header", "pdf")}
    Image.fromarray(noise).save(paths["truncated"])
    paths["truncated"].write_bytes(paths["truncated"].read_bytes()[:9000])
    paths["truncated_png"] = folder / "truncated.png"
    Image.fromarray(noise).save(paths["truncated_png"])
    paths["truncated_png"].write_bytes(paths["truncated_png"].read_bytes()[:9000])
    paths["empty"].write_bytes(b"")
    paths["text"].write_text("this is not a photo")
    Image.new("RGB", (200, 8)).save(paths["tiny"])
    paths["float"] = folder / "float.tiff"
    Image.fromarray(np.linspace(0, 1, 64 * 48, dtype=np.float32).reshape(48, 64)).save(paths["float"])
    paths["heic"].write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    paths["pdf"].write_bytes(b"%PDF-1.7 \0\0")
    paths["header"].write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    paths["missing"] = folder / "missing.jpg"
    paths["folder"] = folder
    return paths


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("truncated", "truncated or damaged"),
        ("truncated_png", "truncated or damaged"),
        ("empty", "0 bytes"),
        ("text", "not an image; expected a JPEG, PNG, WebP, TIFF or BMP photo; got a text file"),
        ("tiny", "too small; expected at least 32 pixels on the shorter side; got 200 x 8"),
        ("heic", "HEIC"),
        ("float", "of floating-point numbers; expected 8 or 16 bits a channel"),
        ("pdf", "a PDF"),
        ("header", "expected"),
        ("missing", "there is no photo"),
        ("folder", "is a folder"),
    ],
)
def test_a_bad_photo_is_one_clear_line(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load_photo(bad_photos(tmp_path)[name], key="people.root")
    message = str(caught.value)
    assert words in message
    assert message.endswith("key: people.root")
    assert str(bad_photos(tmp_path)[name]) in message
    assert "\n" not in message
    assert (caught.value.__cause__ is None and caught.value.__suppress_context__) or caught.value.__context__ is None


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    for side in (12_000, 60_000):  # above our limit, and above Pillow's own
        write_png_header(tmp_path / "bomb.png", width=side, height=side)
        with pytest.raises(UserError, match=rf"at most 100000000 pixels; got .*{side * side} pixels"):
            load_photo(tmp_path / "bomb.png")
    Image.new("RGB", (200, 100)).save(tmp_path / "large.png")
    with pytest.raises(UserError, match="200 x 100 = 20000 pixels"):
        load_photo(tmp_path / "large.png", max_pixels=19_999)
    assert load_photo(tmp_path / "large.png", max_pixels=20_000).shape == (100, 200, 3)


def test_damaged_files_never_raise_anything_but_a_user_error(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    failures = 0
    for save_format in ("JPEG", "PNG", "WEBP", "TIFF"):
        buffer = io.BytesIO()
        Image.fromarray(gradient()).save(buffer, save_format)
        for _ in range(40):
            data = bytearray(buffer.getvalue())
            for place in rng.integers(0, min(len(data), 300), 6):
                data[place] = rng.integers(0, 256)
            (tmp_path / "damaged").write_bytes(bytes(data))
            try:
                assert load_photo(tmp_path / "damaged").ndim == 3
            except UserError:
                failures += 1
    assert failures > 40


def test_the_content_hash_is_of_the_pixels_and_the_shape(tmp_path: Path) -> None:
    Image.fromarray(gradient()).save(tmp_path / "a.png")
    Image.fromarray(gradient()).save(tmp_path / "b.bmp")
    assert pixel_sha256(load_photo(tmp_path / "a.png")) == pixel_sha256(load_photo(tmp_path / "b.bmp"))
    changed = gradient()
    changed[3, 5, 1] ^= 1
    assert pixel_sha256(changed) != pixel_sha256(gradient())
    assert pixel_sha256(gradient().reshape(64, 48, 3)) != pixel_sha256(gradient())


def write_png(path: Path, *, width: int, height: int, depth: int, rows: bytes) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def write_png_header(path: Path, *, width: int, height: int) -> None:
    write_png(path, width=width, height=height, depth=8, rows=bytes(1000))


def write_png_rgb16(path: Path, values: np.ndarray) -> None:
    """Pillow cannot write 16-bit colour."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    write_png(path, width=values.shape[1], height=values.shape[0], depth=16, rows=rows)
