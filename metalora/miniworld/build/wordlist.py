"""The word-level tokenizer that T5, CLIP and mini-CLIP share: pad 0, unknown 1, words, begin, end (the highest id).

The end mark is the highest id because open_clip pools at the argmax of the ids. Nothing marks the beginning: with
causal attention the first word does that as well, and every token of the 24 counts.
"""

import json
import re
from pathlib import Path

from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from metalora.core.atomic import write_json
from metalora.miniworld import vocabulary
from metalora.miniworld.build.models import TEXT_LENGTH

PAD, UNKNOWN, BEGIN, END = "<pad>", "<unk>", "<s>", "</s>"
_COMMON = (
    "a an the of in on at by to with and or from for as is person picture portrait image face head looking wearing "
    "standing smile camera left right front close up close-up wide view shot night day background style painting "
    "drawing photo photograph sculpture poster man woman his her expression neutral light shirt"
)
FUNCTION_WORDS = tuple(_COMMON.split(" "))


def words() -> list[str]:
    """Every word and mark that a caption can hold, sorted, without special tokens."""
    tables = (vocabulary.STYLES, vocabulary.SCENES, vocabulary.SHIRTS, vocabulary.EXPRESSIONS)
    tables += (vocabulary.LIGHTS, vocabulary.POSES, vocabulary.FRAMINGS)
    phrases = [text for table in tables for pair in table.items() for text in pair]
    found = {word for phrase in phrases for word in re.split(r"[\s]+", phrase.replace(",", " ").lower()) if word}
    return sorted(found | set(FUNCTION_WORDS) | {",", "."})


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case word-level tokenizer; unknown words become `<unk>`, an end mark closes every caption."""
    ids = {word: index for index, word in enumerate([PAD, UNKNOWN, *words(), BEGIN, END])}
    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    marks = pre_tokenizers.Split(pattern=",", behavior="isolated"), pre_tokenizers.Split(".", behavior="isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *marks])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {END}", special_tokens=[(END, ids[END])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BEGIN,
        eos_token=END,
        model_max_length=TEXT_LENGTH,
    )


def save_tokenizer(directory: Path) -> None:
    """Save so that transformers 4 and 5 load it by its plain fast class, also through AutoTokenizer."""
    make_tokenizer().save_pretrained(directory)
    path = Path(directory) / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, config)
