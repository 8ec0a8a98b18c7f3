"""A photo that is there twice: R-FaceSim compares with other photos than the reference (Algorithm 3), never with it."""

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from metalora.core.errors import UserError
from metalora.people.photos import load_photo, pixel_sha256


def refuse_copies(identity: str, *, reference: Path, test_photos: Iterable[Path], key: str = "benchmark.root") -> None:
    """Hold a person's test photos against the reference.

    Raises:
        UserError: a test photo has the reference's pixels, whatever the file around them.
    """
    for photo in test_photos:
        if same_pixels(reference, photo, key=key):
            raise UserError(
                f"a test photo of {identity} is the reference photo once more",
                expected="other photos of the person: R-FaceSim leaves the reference out (Algorithm 3)",
                got=f"{reference} and {photo}",
                key=key,
            )


def same_pixels(one: Path, other: Path, *, key: str) -> bool:
    """Whether two photos show the very same picture; only photos of one size are read whole."""
    if one.read_bytes() == other.read_bytes():
        return True
    if _sides(one) != _sides(other):
        return False
    return pixel_sha256(load_photo(one, key=key)) == pixel_sha256(load_photo(other, key=key))


def _sides(path: Path) -> tuple[int, ...] | None:
    """The sides of a picture in ascending order: a tag may turn it. None: the loader finds words for it."""
    try:
        with Image.open(path) as picture:
            return tuple(sorted(picture.size))
    except Exception:  # decoders raise nearly anything on damaged files
        return None
