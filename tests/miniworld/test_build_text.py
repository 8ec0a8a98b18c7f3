"""The shared word-level tokenizer."""

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from metalora.miniworld.build.models import TEXT_LENGTH
from metalora.miniworld.build.wordlist import END, make_tokenizer, save_tokenizer
from metalora.miniworld.captions import sample_caption
from metalora.miniworld.shots import sample_shot


@pytest.fixture(scope="module")
def captions() -> list[str]:
    rng = np.random.default_rng(0)
    return [sample_caption(rng, noun, sample_shot(rng, fixed={})) for noun in ("man", "woman") for _ in range(300)]


def test_captions_survive_a_round_trip(captions: list[str]) -> None:
    tokenizer = make_tokenizer()
    for caption in captions:
        ids = tokenizer(caption).input_ids
        assert tokenizer.unk_token_id not in ids
        again = tokenizer.decode(ids, skip_special_tokens=True).replace(" ,", ",")
        assert again == caption


def test_every_caption_fits_with_its_end_mark(captions: list[str]) -> None:
    tokenizer = make_tokenizer()
    encoded = tokenizer(captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True).input_ids
    end = tokenizer.convert_tokens_to_ids(END)
    assert all(len(ids) == TEXT_LENGTH and end in ids for ids in encoded)
    assert end == len(tokenizer) - 1  # open_clip pools at the highest id
    assert max(len(tokenizer(caption).input_ids) for caption in captions) <= TEXT_LENGTH


def test_unknown_words_and_capitals() -> None:
    tokenizer = make_tokenizer()
    unknown = tokenizer.unk_token_id
    assert tokenizer("A photo of a zebra").input_ids == [
        *tokenizer("a photo of a").input_ids[:-1],
        unknown,
        len(tokenizer) - 1,
    ]


def test_saved_tokenizer_loads_by_both_ways(tmp_path) -> None:
    save_tokenizer(tmp_path)
    text = "a photo of a man, turned left"
    expected = make_tokenizer()(text).input_ids
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == expected
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path)(text).input_ids == expected
