"""One made-up benchmark with images for all tests of the user study."""

from pathlib import Path

import pytest
from made_up_images import make_benchmark, make_images


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `benchmark` and `images` in it, enough for the paper's 64 questions; not to be changed."""
    folder = tmp_path_factory.mktemp("made_up")
    make_images(folder / "images", make_benchmark(folder / "benchmark"))
    return folder
