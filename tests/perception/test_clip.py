"""open_clip models from a folder in the real layout, with their own preprocessing and tokenizer."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from metalora.core.contracts import ClipScorer
from metalora.core.errors import UserError
from metalora.perception import clip
from metalora.perception.clip import OpenClipScorer

WORDS = ["<pad>", "<unk>", "a", "photo", "of", "man", "woman", "beach", "<end>"]
MODEL = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8},
    "text_cfg": {
        "context_length": 8,
        "vocab_size": len(WORDS),
        "width": 16,
        "heads": 2,
        "layers": 1,
        "hf_tokenizer_name": "local",
        "pool_type": "argmax",
    },
}
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import open_clip

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("clip")
    model = open_clip.CLIP(**MODEL)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path / clip.WEIGHTS_FILE)
    preprocess = {"mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "shortest"}
    (path / clip.CONFIG_FILE).write_text(json.dumps({"model_cfg": MODEL, "preprocess_cfg": preprocess}))
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    end = len(WORDS) - 1
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <end>", special_tokens=[("<end>", end)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=8
    ).save_pretrained(path)
    return path


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40 + 8 * n, 64, 3), dtype=np.uint8) for n in range(5)]


def test_images_go_through_the_models_own_preprocessing(folder: Path) -> None:
    import open_clip

    scorer: ClipScorer = OpenClipScorer(folder, batch_size=2)
    embedded = scorer.embed_images(pictures())
    assert embedded.shape == (5, 12) and embedded.dtype == torch.float32 and not embedded.is_inference()
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(5), atol=1e-6)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    with torch.no_grad():
        expected = model.eval().encode_image(preprocess(Image.fromarray(pictures()[3]))[None], normalize=True)
    assert torch.allclose(embedded[3:4], expected, atol=1e-5)
    assert torch.allclose(
        scorer._preprocess(Image.new("RGB", (50, 40)))[:, 0, 0], -torch.tensor(MEAN) / torch.tensor(STD)
    )


def test_prompts_go_through_the_models_own_tokenizer(folder: Path) -> None:
    scorer = OpenClipScorer(folder, batch_size=2)
    prompts = ["a photo of a man", "a photo of a woman", "a beach", "a photo of a man"]
    embedded = scorer.embed_texts(prompts)
    assert embedded.shape == (4, 12)
    assert torch.allclose(embedded.norm(dim=-1), torch.ones(4), atol=1e-6)
    assert torch.allclose(embedded[0], embedded[3], atol=1e-6)
    assert not torch.allclose(embedded[0], embedded[1], atol=1e-3)
    assert torch.allclose(embedded[2:3], scorer.embed_texts(["a beach"]), atol=1e-6)
    assert scorer._tokenizer(["a photo"]).tolist() == [[2, 3, 8, 0, 0, 0, 0, 0]]
    assert scorer.embed_texts(["a photo of a man " * 5]).shape == (1, 12)


def test_a_bad_model_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"no open_clip_config.json and no open_clip_model.safetensors; key: scorer.clip"
    ):
        OpenClipScorer(tmp_path)
    with pytest.raises(UserError, match="is not a CLIP model"):
        OpenClipScorer(tmp_path / "nowhere")
    for name in (clip.CONFIG_FILE, clip.WEIGHTS_FILE):
        (tmp_path / name).write_bytes((folder / name).read_bytes()[:-50])
    with pytest.raises(UserError, match="cannot open the CLIP model") as caught:
        OpenClipScorer(tmp_path)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"unknown CLIP model; .*got ViT-Z"):
        OpenClipScorer("ViT-Z")
    with pytest.raises(UserError, match=r"unknown weights .*openai.*got mine; key: scorer\.clip\.pretrained"):
        OpenClipScorer("ViT-B-32-quickgelu", pretrained="mine")


def test_published_weights_are_opened_as_they_were_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The safetensors of the hub, the activation and the preprocessing of the tag; nothing else is asked for."""
    import huggingface_hub

    asked: list[tuple[str, str]] = []

    def download(repository: str, name: str, *, local_files_only: bool = False) -> str:
        asked.append((repository, name))
        return str(folder / clip.WEIGHTS_FILE)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    options = clip._published("ViT-B-32", "openai")
    assert asked == [("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")]
    assert options["force_quick_gelu"] is True
    assert options["image_mean"] == (0.48145466, 0.4578275, 0.40821073)
    assert options["pretrained"].endswith(".safetensors")


def test_without_a_network_a_download_fails_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def not_cached(*_: object, local_files_only: bool = False) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("not cached")

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_cached)
    monkeypatch.setattr(clip.urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match=r"cannot download the CLIP model ViT-B-32-quickgelu; .*got no network"):
        OpenClipScorer("ViT-B-32-quickgelu", pretrained="openai")


def test_weights_are_held_against_their_sha256(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configured sha256 counts for any file; a download must have the one that the hub names its content after."""
    import huggingface_hub

    digest = hashlib.sha256((folder / clip.WEIGHTS_FILE).read_bytes()).hexdigest()
    assert OpenClipScorer(folder, sha256=digest).embed_texts(["a beach"]).shape == (1, 12)
    with pytest.raises(UserError, match=rf"expected sha256 {'1' * 64}.*got {digest}; key: scorer\.clip\.sha256"):
        OpenClipScorer(folder, sha256="1" * 64)

    (tmp_path / "blobs").mkdir()
    for name, content in ((digest, (folder / clip.WEIGHTS_FILE).read_bytes()), ("0" * 64, b"damaged")):
        (tmp_path / "blobs" / name).write_bytes(content)
        link = tmp_path / f"link-{name}"
        link.symlink_to(tmp_path / "blobs" / name)
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, link=link, **__: str(link))
        if content == b"damaged":
            with pytest.raises(UserError, match=f"expected sha256 {'0' * 64}"):
                clip._published("ViT-B-32", "openai")
        else:
            assert clip._published("ViT-B-32", "openai")["pretrained"] == str(link)


def test_a_download_that_nothing_can_be_held_against_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the cache has no links, a file lies under its own name, and what the hub stated is not kept."""
    import huggingface_hub

    path = folder / clip.WEIGHTS_FILE
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(path))
    clip._published("ViT-B-32", "openai")
    assert f"{path} is not checked" in caplog.text and "scorer.clip.sha256" in caplog.text
    caplog.clear()
    clip._published("ViT-B-32", "openai", "a" * 64)  # the caller checks it
    assert not caplog.text


def test_the_published_preprocessing_and_activation_in_numbers(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The paper's CLIP on a tiny network of the same kind: 224 px bicubic on the shorter side, centre crop, OpenAI's
    mean and deviation, QuickGELU."""
    import open_clip
    from open_clip.transformer import QuickGELU

    name = "tiny-for-a-test"
    vision = {"image_size": 224, "layers": 1, "width": 16, "head_width": 8, "patch_size": 32}
    model = MODEL | {"vision_cfg": vision, "text_cfg": MODEL["text_cfg"] | {"hf_tokenizer_name": str(folder)}}
    (tmp_path / f"{name}.json").write_text(json.dumps(model))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    weights = open_clip.CLIP(**model).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, tmp_path / clip.WEIGHTS_FILE)
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / clip.WEIGHTS_FILE))
    published = clip._published("ViT-B-32-quickgelu", "openai")
    monkeypatch.setattr(clip, "_published", lambda *_: published)
    scorer = OpenClipScorer(name, pretrained="openai")
    image = np.random.default_rng(0).integers(0, 255, (300, 500, 3), dtype=np.uint8)
    picture = Image.fromarray(image).resize((373, 224), Image.Resampling.BICUBIC)
    left = round((373 - 224) / 2)
    pixels = np.asarray(picture.crop((left, 0, left + 224, 224)), dtype=np.float64) / 255
    mean, deviation = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    expected = torch.from_numpy(((pixels - mean) / deviation).transpose(2, 0, 1)).float()
    assert torch.allclose(scorer._preprocess(Image.fromarray(image)), expected, atol=1e-5)
    assert any(isinstance(module, QuickGELU) for module in scorer._model.modules())
    assert not any(isinstance(module, torch.nn.GELU) for module in scorer._model.modules())
