"""Pictures and prompts in one space: open_clip models, by name or from a local folder.

Shape legend: B batch, D width of the embedding.
"""

import hashlib
import logging
import re
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from metalora.core.errors import UserError

CONFIG_FILE, WEIGHTS_FILE = "open_clip_config.json", "open_clip_model.safetensors"
_KEY = "scorer.clip.model"
_log = logging.getLogger(__name__)


class OpenClipScorer:
    """An open_clip model with its own tokenizer and its own preprocessing (resize, crop, mean and deviation).

    Args:
        model: a folder with open_clip_config.json and open_clip_model.safetensors, or the name of an architecture.
        pretrained: the name of published weights for that architecture; downloaded once, and held against the sha256
            that the hub states for them.
        sha256: that the weights' file must have; None: not checked beyond that. A download whose sha256 cannot be seen
            is told.
        batch_size: images or prompts embedded at once.

    Raises:
        UserError: no such folder or name, an unreadable folder, or no network for the download.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        pretrained: str | None = None,
        sha256: str | None = None,
        device: str = "cpu",
        batch_size: int = 64,
    ) -> None:
        import open_clip

        name = str(model)
        if Path(model).is_dir() or "/" in name:
            folder = _checked(Path(model))
            _verify(folder / WEIGHTS_FILE, sha256)
            opened = _open(f"local-dir:{folder}")
        elif name not in open_clip.list_models():
            raise UserError("unknown CLIP model", expected="a folder, or a name known to open_clip", got=name, key=_KEY)
        else:
            options = _published(name, pretrained, sha256)
            _verify(Path(options["pretrained"]), sha256)
            opened = _open(name, **options)
        self._model, self._preprocess, self._tokenizer = opened
        self._model = self._model.eval().requires_grad_(False).to(device)
        self._device, self._batch_size = device, batch_size

    @torch.no_grad()
    def embed_images(self, images: Sequence[np.ndarray]) -> Tensor:
        """uint8 RGB images [H, W, 3] of any sizes to unit embeddings [B, D], float32 on the CPU."""

        def embed(batch: Sequence[np.ndarray]) -> Tensor:
            pixels_B3HW = torch.stack([self._preprocess(Image.fromarray(image)) for image in batch])
            return self._model.encode_image(pixels_B3HW.to(self._device), normalize=True)

        return self._batched(images, embed)

    @torch.no_grad()
    def embed_texts(self, prompts: Sequence[str]) -> Tensor:
        """Prompts to unit embeddings [B, D], float32 on the CPU; what exceeds the model's text length is cut off."""

        def embed(batch: Sequence[str]) -> Tensor:
            return self._model.encode_text(self._tokenizer(list(batch)).to(self._device), normalize=True)

        return self._batched(prompts, embed)

    def _batched(self, items: Sequence[Any], embed: Any) -> Tensor:
        assert len(items), "nothing to embed"
        starts = range(0, len(items), self._batch_size)
        return torch.cat([embed(items[start : start + self._batch_size]).float().cpu() for start in starts])


def _checked(folder: Path) -> Path:
    missing = [name for name in (CONFIG_FILE, WEIGHTS_FILE) if not (folder / name).is_file()]
    if missing:  # open_clip would take pickled weights from the folder, or start from random ones
        raise UserError(
            f"{folder} is not a CLIP model",
            expected=f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
            got=f"no {' and no '.join(missing)}",
            key=_KEY,
        )
    return folder


def _published(name: str, pretrained: str | None, sha256: str | None = None) -> dict[str, Any]:
    """What open_clip needs to open published weights exactly as they were trained; downloads them when not there.

    Only safetensors are taken. open_clip's own way retries for most of a minute where there is no network, and falls
    back to pickled weights.
    """
    import open_clip
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    key = "scorer.clip.pretrained"
    published = {tag: open_clip.get_pretrained_cfg(name, tag) for tag in open_clip.list_pretrained_tags_by_model(name)}
    usable = {tag: config for tag, config in published.items() if config.get("hf_hub")}
    if pretrained not in usable:
        expected = " or ".join(usable) or "a local folder: nothing is published for it as safetensors"
        raise UserError(f"unknown weights for the CLIP model {name}", expected=expected, got=str(pretrained), key=key)
    config = usable[pretrained]
    repository = config["hf_hub"].rstrip("/")
    try:
        path = hf_hub_download(repository, WEIGHTS_FILE, local_files_only=True)
    except LocalEntryNotFoundError:
        try:
            with urllib.request.urlopen(constants.ENDPOINT, timeout=10):  # answers at once where there is no network
                pass
            path = hf_hub_download(repository, WEIGHTS_FILE)
        except (OSError, HfHubHTTPError) as error:
            raise UserError(
                f"cannot download the CLIP model {name}",
                expected=f"network access, or a local folder with {CONFIG_FILE} and {WEIGHTS_FILE}",
                got=_one_line(error),
                key=_KEY,
            ) from None
    # The hub's cache names a file's content after the sha256 that the hub states for it.
    stated = Path(path).resolve().name
    if re.fullmatch(r"[0-9a-f]{64}", stated):
        _verify(Path(path), stated)
    elif sha256 is None:  # a cache without links, as on some file systems, does not keep what the hub stated
        _log.warning("%s is not checked: its cache does not say which sha256 it should have (scorer.clip.sha256)", path)
    return {
        "pretrained": path,
        "force_quick_gelu": bool(config.get("quick_gelu", False)),
        "image_mean": config.get("mean"),
        "image_std": config.get("std"),
        "image_interpolation": config.get("interpolation"),
        "image_resize_mode": config.get("resize_mode"),
    }


def _verify(path: Path, sha256: str | None) -> None:
    """Raise UserError when a file does not have the sha256 it should have."""
    if sha256 is None:
        return
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise UserError(
            f"{path} is not the CLIP model it should be",
            expected=f"sha256 {sha256}; remove a damaged download and run again",
            got=digest,
            key="scorer.clip.sha256",
        )


def _open(name: str, **options: Any) -> tuple[Any, Any, Any]:
    import open_clip

    try:
        opened: Any = open_clip.create_model_from_pretrained(name, **options)
        return opened[0], opened[1], open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip wraps file, JSON and shape errors in many types
        raise UserError(
            f"cannot open the CLIP model {name}", expected="a readable open_clip model", got=_one_line(error), key=_KEY
        ) from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
