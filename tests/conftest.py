"""Fixtures that several test modules share: a complete but tiny random FLUX on disk, the mini world's benchmark."""

import fcntl
import os
from pathlib import Path

import pytest
from tiny_models import TEXT_TOKENS, make_tiny_flux

from metalora.backbones.backbone import DiffusersBackbone
from metalora.backbones.flux import load_flux


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules with slow tests come first: otherwise the end of a parallel run waits for one of them alone."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def tiny_flux_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random FluxPipeline directory that stock diffusers loads."""
    folder = tmp_path_factory.mktemp("tiny_flux")
    make_tiny_flux(folder)
    return folder


@pytest.fixture
def tiny_backbone(tiny_flux_dir: Path) -> DiffusersBackbone:
    """A fresh backbone around `tiny_flux_dir`; images of 16 or 24 px are enough."""
    return load_flux(tiny_flux_dir, name="tiny", max_text_tokens=TEXT_TOKENS)


@pytest.fixture(scope="session")
def mini_phd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Mini-PHD's photos, rendered once for all processes of the suite; to be copied, not to be changed."""
    from metalora.miniworld.phd import write_mini_phd

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "mini_phd"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_mini_phd(folder)
    return folder


@pytest.fixture(scope="session")
def made_up(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The user study's folder with `benchmark` and `images`, enough for the paper's 64 questions; not to be changed."""
    from made_up_images import make_benchmark, make_images

    folder = tmp_path_factory.mktemp("made_up")
    make_images(folder / "images", make_benchmark(folder / "benchmark"))
    return folder
