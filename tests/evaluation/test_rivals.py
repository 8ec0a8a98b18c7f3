"""DreamBooth and textual inversion on a tiny FLUX: they learn, they repeat, and they leave the base as it was."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metalora.adapters.artifacts import read_tensors
from metalora.backbones.backbone import DiffusersBackbone
from metalora.core.contracts import TextEmbedding, TrainingImage, TrainingPerson
from metalora.core.errors import UserError
from metalora.core.noise import generator
from metalora.evaluation.rivals.dreambooth import DreamBooth, DreamBoothRecipe, Sampling
from metalora.evaluation.rivals.rival import Sitter, file_of
from metalora.evaluation.rivals.textual_inversion import (
    TextualInversion,
    TextualInversionRecipe,
    Words,
    with_word,
)

BOOTH = DreamBoothRecipe(learning_rate=1e-3, iterations=4)
INVERSION = TextualInversionRecipe(learning_rate=1e-2, iterations=4)
SAMPLING = Sampling(steps=2, guidance=1.0, size=(16, 24))
CAPTIONS = ("a photo of a man", "a photo of a woman", "")


def sitter(name: str, noun: str = "man") -> Sitter:
    latents = torch.randn(2, 4, 4, 6, generator=generator("latents", name))
    person = TrainingPerson(name, f"a photo of a {noun}", (TrainingImage(latents, (16, 24), "photo"),))
    return Sitter(name, noun, Path("photo.png"), person)


@pytest.fixture
def texts(tiny_backbone: DiffusersBackbone) -> Mapping[str, TextEmbedding]:
    return {caption: tiny_backbone.encode_text([caption]) for caption in CAPTIONS}


def weights(backbone: DiffusersBackbone) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in backbone.denoiser.state_dict().items()}


def nobody(done: int, total: int) -> None:
    """Progress that nobody watches."""


class TestDreamBooth:
    def booth(self, backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], recipe=BOOTH) -> DreamBooth:
        return DreamBooth(backbone, recipe=recipe, texts=texts, sampling=SAMPLING, seed=0)

    def test_it_trains_every_weight_and_gives_them_back(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        before = weights(tiny_backbone)
        booth = self.booth(tiny_backbone, texts)
        booth.learn([sitter("adam")], out=tmp_path, progress=nobody)
        path = file_of(tmp_path, "adam")
        difference = read_tensors(path, what="file")[0]
        assert set(difference) == {name for name, _ in tiny_backbone.denoiser.named_parameters()}
        moved = [name for name, value in difference.items() if value.abs().max() > 0]
        assert len(moved) > 0.9 * len(difference)
        assert {value.dtype for value in difference.values()} == {torch.bfloat16}
        assert all(torch.equal(value, before[name]) for name, value in weights(tiny_backbone).items())
        with booth.applied(path):
            inside = weights(tiny_backbone)
        name = moved[0]
        assert torch.equal(inside[name], before[name] + difference[name].float())
        assert all(torch.equal(value, before[name]) for name, value in weights(tiny_backbone).items())
        assert not any(p.requires_grad or p.grad is not None for p in tiny_backbone.denoiser.parameters())

    def test_it_gives_the_weights_back_when_drawing_fails(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        booth, before = self.booth(tiny_backbone, texts), weights(tiny_backbone)
        booth.learn([sitter("adam")], out=tmp_path, progress=nobody)
        with pytest.raises(KeyboardInterrupt), booth.applied(file_of(tmp_path, "adam")):
            raise KeyboardInterrupt
        assert all(torch.equal(value, before[name]) for name, value in weights(tiny_backbone).items())

    def test_it_learns_the_photo(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        booth = self.booth(tiny_backbone, texts, replace(BOOTH, iterations=60))
        person = sitter("adam")
        assert person.training is not None
        booth.learn([person], out=tmp_path, progress=nobody)
        clean = person.training.images[0].latents_2CHW[:1]
        noise = torch.randn(8, *clean.shape[1:], generator=generator("held out"))
        t = torch.linspace(0.1, 0.9, 8)
        objective = tiny_backbone.objective
        given = (clean.expand(8, -1, -1, -1), noise, t)
        text = texts["a photo of a man"].rows(torch.zeros(8, dtype=torch.long))

        def error() -> float:
            with torch.no_grad():
                made = tiny_backbone.predict(objective.noisy(*given), t_B=t, text=text, guidance=1.0)
            return float((made - objective.target(*given)).square().mean())

        before = error()
        with booth.applied(file_of(tmp_path, "adam")):
            assert error() < 0.9 * before
        assert error() == before

    def test_a_cut_run_goes_on_with_whoever_is_missing(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        people, seen = [sitter("adam"), sitter("boris")], []
        self.booth(tiny_backbone, texts).learn(people, out=tmp_path / "uncut", progress=nobody)
        self.booth(tiny_backbone, texts).learn(people[:1], out=tmp_path / "cut", progress=nobody)
        stamp = file_of(tmp_path / "cut", "adam").stat().st_mtime_ns
        booth = self.booth(tiny_backbone, texts)
        booth.learn(people, out=tmp_path / "cut", progress=lambda done, total: seen.append((done, total)))
        assert seen == [(2, 2)]
        assert file_of(tmp_path / "cut", "adam").stat().st_mtime_ns == stamp
        for name in ("adam", "boris"):
            assert file_of(tmp_path / "cut", name).read_bytes() == file_of(tmp_path / "uncut", name).read_bytes()

    def test_prior_preservation_trains_on_the_class_too(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        with_class = replace(BOOTH, prior_images=3)
        for name, recipe in (("plain", BOOTH), ("kept", with_class), ("again", with_class)):
            self.booth(tiny_backbone, texts, recipe).learn([sitter("adam")], out=tmp_path / name, progress=nobody)
        plain, kept, again = (file_of(tmp_path / n, "adam").read_bytes() for n in ("plain", "kept", "again"))
        assert kept == again
        assert kept != plain

    def test_a_file_of_another_base_is_refused(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        from metalora.adapters.artifacts import write_tensors

        write_tensors(tmp_path / "x", {"w": torch.zeros(1)}, metadata={"backbone_fingerprint": "0" * 64})
        booth = self.booth(tiny_backbone, texts)
        with pytest.raises(UserError, match="trained on another base"), booth.applied(tmp_path / "x"):
            pass

    def test_a_rate_that_diverges_is_told(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        booth, before = self.booth(tiny_backbone, texts, replace(BOOTH, learning_rate=1e30)), weights(tiny_backbone)
        with pytest.raises(UserError, match=r"diverged on adam.*dreambooth\.learning_rate"):
            booth.learn([sitter("adam")], out=tmp_path, progress=nobody)
        assert not list(tmp_path.iterdir())
        assert all(torch.equal(value, before[name]) for name, value in weights(tiny_backbone).items())


class TestTextualInversion:
    def inversion(
        self, backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], recipe=INVERSION
    ) -> TextualInversion:
        return TextualInversion(backbone, recipe=recipe, texts=texts, seed=0)

    def test_a_new_word_starts_as_the_class_noun(self, tiny_backbone: DiffusersBackbone) -> None:
        words = Words(tiny_backbone, words=2, noun="man")
        plain = tiny_backbone.encode_text(["a photo of a man"])
        for word in words.names:
            told = words.embed([with_word("a photo of a man", noun="man", word=word)])
            assert torch.allclose(told.tokens_BLD, plain.tokens_BLD, atol=1e-6)
            assert torch.allclose(told.pooled_BP, plain.pooled_BP, atol=1e-6)

    def test_clip_pools_at_the_end_of_the_text_whatever_its_configuration_says(
        self, tiny_backbone: DiffusersBackbone
    ) -> None:
        clip = tiny_backbone.pipeline(text=True).text_encoder
        own = clip.eos_token_id
        clip.eos_token_id = 2  # as FLUX.1-dev's: the highest id is taken for the end
        try:
            words = Words(tiny_backbone, words=1, noun="man")
            plain = tiny_backbone.encode_text(["a photo of a man"]).pooled_BP
            new = words.embed([with_word("a photo of a man", noun="man", word=words.names[0])])
            longer = words.embed([with_word("a photo of a man on beach", noun="man", word=words.names[0])])
        finally:
            clip.eos_token_id = own
        assert torch.equal(new.pooled_BP, plain)
        assert not torch.equal(new.pooled_BP, longer.pooled_BP)  # what stands behind the new word counts

    def test_the_base_does_not_learn_the_word(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        before = weights(tiny_backbone)
        inversion = self.inversion(tiny_backbone, texts)
        inversion.learn([sitter("adam")], out=tmp_path, progress=nobody)
        for caption, text in texts.items():
            assert torch.equal(tiny_backbone.encode_text([caption]).tokens_BLD, text.tokens_BLD)
        assert all(torch.equal(value, before[name]) for name, value in weights(tiny_backbone).items())
        prompt = "a pencil drawing of a man on a beach"
        told = inversion.texts(file_of(tmp_path, "adam"), [prompt], class_noun="man")
        assert told is not None
        assert not torch.allclose(told[prompt].tokens_BLD, tiny_backbone.encode_text([prompt]).tokens_BLD, atol=1e-4)
        assert not told[prompt].tokens_BLD.requires_grad

    def test_a_cohort_is_as_good_as_training_alone(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        people = [sitter("adam"), sitter("boris"), sitter("clara", "woman")]
        self.inversion(tiny_backbone, texts).learn(people, out=tmp_path / "cohort", progress=nobody)
        alone = self.inversion(tiny_backbone, texts, replace(INVERSION, cohort_size=1))
        alone.learn(people, out=tmp_path / "alone", progress=nobody)
        rows = {}
        for name in ("adam", "boris", "clara"):
            rows[name], own = (read_tensors(file_of(tmp_path / n, name), what="file")[0] for n in ("cohort", "alone"))
            assert all(torch.allclose(rows[name][key], own[key], atol=1e-4) for key in ("clip_l", "t5"))
        assert not torch.allclose(rows["adam"]["t5"], rows["boris"]["t5"], atol=1e-4)

    def test_both_encoders_learn_and_a_run_repeats(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        for name in ("one", "two"):
            self.inversion(tiny_backbone, texts).learn([sitter("adam")], out=tmp_path / name, progress=nobody)
        one, two = (file_of(tmp_path / name, "adam") for name in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
        start, found = Words(tiny_backbone, words=1, noun="man").rows, read_tensors(one, what="file")[0]
        assert all((found[name] - start[name]).abs().max() > 1e-3 for name in ("clip_l", "t5"))
        stamp = one.stat().st_mtime_ns
        self.inversion(tiny_backbone, texts).learn([sitter("adam")], out=tmp_path / "one", progress=nobody)
        assert one.stat().st_mtime_ns == stamp

    def test_only_the_class_noun_is_replaced(self) -> None:
        assert with_word("a photo of a man, a manly man", noun="man", word="<x>") == "a photo of a <x>, a manly man"
        assert with_word("a woman", noun="woman", word="<x>") == "a <x>"
        with pytest.raises(UserError, match="does not name the class"):
            with_word("a photo of a woman", noun="man", word="<x>")

    def test_a_file_of_other_text_encoders_is_refused(
        self, tiny_backbone: DiffusersBackbone, texts: Mapping[str, TextEmbedding], tmp_path: Path
    ) -> None:
        from metalora.adapters.artifacts import write_tensors

        write_tensors(tmp_path / "x", {"t5": torch.zeros(1, 16)}, metadata={"text_fingerprint": "0" * 64})
        with pytest.raises(UserError, match="other text encoders"):
            self.inversion(tiny_backbone, texts).texts(tmp_path / "x", ["a man"], class_noun="man")
