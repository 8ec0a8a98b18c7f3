"""A face adapter in a FLUX transformer: silent when fresh or at scale 0, gone when detached, refused elsewhere."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from metalora.adapters.face_adapter import (
    FaceAdapter,
    FaceAdapterShape,
    FaceRoute,
    load_face_adapter,
    save_face_adapter,
    transformer_blocks,
)
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.errors import UserError
from metalora.core.noise import generator

SHAPE = FaceAdapterShape(width=32, heads=2, blocks=2, embedding=8, patches=4, features=6, identity_tokens=2)


def trained(seed: int = 0) -> FaceAdapter:
    """An adapter whose outputs are not zero."""
    adapter = FaceAdapter(SHAPE, seed=seed)
    with torch.no_grad():
        for place, block in enumerate(adapter.blocks):
            block.to_out.weight.normal_(generator=generator("out", seed, place))  # type: ignore[union-attr]
    return adapter.requires_grad_(False)


def face(adapter: FaceAdapter, seed: int = 0) -> Tensor:
    source = generator("face", seed)
    return adapter.tokens(torch.randn(1, 8, generator=source), torch.randn(1, 4, 6, generator=source))


def drawn(backbone: DiffusersBackbone, count: int = 2) -> Tensor:
    text = backbone.encode_text(["a photo of a man", "a pencil drawing of a woman"][:count])
    x = torch.randn(count, 4, 4, 6, generator=generator("x"))
    with torch.no_grad():
        return backbone.predict(x, t_B=torch.tensor([0.3, 0.8])[:count], text=text, guidance=1.0)


def test_a_face_is_as_many_tokens_as_said_and_length_of_the_embedding_does_not_count() -> None:
    adapter, source = trained(), generator("tokens")
    embedding, patches = torch.randn(3, 8, generator=source), torch.randn(3, 4, 6, generator=source)
    tokens = adapter.tokens(embedding, patches)
    assert tokens.shape == (3, 2 + 4, 32)
    assert torch.allclose(tokens, adapter.tokens(5 * embedding, patches), atol=1e-5)
    assert not torch.allclose(tokens, adapter.tokens(embedding, patches.flip(1)))  # patches have places


@pytest.mark.parametrize("case", ["fresh", "scale 0"])
def test_a_fresh_adapter_and_scale_0_leave_the_base_bit_for_bit(tiny_backbone: DiffusersBackbone, case: str) -> None:
    base = drawn(tiny_backbone)
    adapter = FaceAdapter(SHAPE).requires_grad_(False) if case == "fresh" else trained()
    scale = 1.0 if case == "fresh" else 0.0
    route = FaceRoute(tiny_backbone.denoiser, adapter, tokens_1TW=face(adapter), scale=scale)
    assert torch.equal(drawn(tiny_backbone), base)
    route.detach()


def test_every_block_adds_its_own_and_all_is_gone_when_detached(tiny_backbone: DiffusersBackbone) -> None:
    base, adapter = drawn(tiny_backbone), trained()
    route = FaceRoute(tiny_backbone.denoiser, adapter, tokens_1TW=face(adapter), scale=1.0)
    with_face = drawn(tiny_backbone)
    route.detach()
    assert torch.equal(drawn(tiny_backbone), base)
    assert (with_face - base).abs().max() > 1e-3
    for place in range(SHAPE.blocks):  # silencing one block changes the image: none is without effect
        other = trained()
        other.blocks[place].to_out.weight.zero_()  # type: ignore[union-attr]
        route = FaceRoute(tiny_backbone.denoiser, other, tokens_1TW=face(other), scale=1.0)
        assert not torch.allclose(drawn(tiny_backbone), with_face, atol=1e-4)
        route.detach()


def test_the_face_and_the_scale_matter_and_batch_mates_do_not(tiny_backbone: DiffusersBackbone) -> None:
    adapter = trained()

    def of(tokens: Tensor, *, scale: float = 1.0, count: int = 2) -> Tensor:
        route = FaceRoute(tiny_backbone.denoiser, adapter, tokens_1TW=tokens, scale=scale)
        try:
            return drawn(tiny_backbone, count)
        finally:
            route.detach()

    one = of(face(adapter))
    assert not torch.allclose(one, of(face(adapter, seed=1)), atol=1e-4)
    assert not torch.allclose(one, of(face(adapter), scale=0.5), atol=1e-4)
    assert torch.allclose(one[:1], of(face(adapter), count=1), atol=1e-5)


def test_the_text_stream_of_a_double_block_is_left_alone(tiny_backbone: DiffusersBackbone) -> None:
    adapter, seen = trained(), []
    attention = transformer_blocks(tiny_backbone.denoiser)[0].attn
    for scale in (0.0, 1.0):
        route = FaceRoute(tiny_backbone.denoiser, adapter, tokens_1TW=face(adapter), scale=scale)
        handle = attention.register_forward_hook(lambda module, given, made: seen.append(made))  # type: ignore[operator]
        drawn(tiny_backbone)
        handle.remove()
        route.detach()
    assert torch.equal(seen[0][1], seen[1][1])
    assert not torch.allclose(seen[0][0], seen[1][0])


def test_a_file_comes_back_and_equal_adapters_are_equal_files(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_face_adapter(tmp_path / name, trained(), metadata={"backbone": "tiny", "backbone_fingerprint": "f" * 64})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded = load_face_adapter(tmp_path / "a", backbone_fingerprint="f" * 64)
    assert loaded.shape == SHAPE
    for name, value in trained().state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.bfloat16().float()), name


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    good, other = tmp_path / "good.safetensors", tmp_path / "other.safetensors"
    save_face_adapter(good, trained(), metadata={"backbone": "tiny", "backbone_fingerprint": "f" * 64})
    save_file({"x": torch.zeros(1)}, other)
    foreign = tmp_path / "foreign.safetensors"
    with safe_open(good, framework="pt") as file:
        save_file({"x": torch.zeros(1)}, foreign, file.metadata())
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes()[:500])
    for path, fingerprint, message in (
        (good, "0" * 64, "another base"),
        (other, "f" * 64, "is not a face adapter"),
        (cut, "f" * 64, "cannot be read"),
        (foreign, "f" * 64, "is not whole"),
        (tmp_path / "none", "f" * 64, "is missing"),
    ):
        with pytest.raises(UserError, match=message) as found:
            load_face_adapter(path, backbone_fingerprint=fingerprint)
        assert "\n" not in str(found.value)
        assert "ip_adapter.adapter" in str(found.value)
