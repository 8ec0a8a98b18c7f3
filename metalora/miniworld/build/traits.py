"""Prompts that name one trait of a picture: mini-CLIP is trained on them and measured with them."""

from collections.abc import Mapping

from metalora.miniworld import vocabulary
from metalora.miniworld.population import CLASS_NOUNS

NEUTRAL = "with a neutral expression"
"""Said of neutral faces in mini-CLIP's captions, as saying nothing means any expression."""


def trait_prompts() -> dict[str, tuple[list[str], list[list[str]]]]:
    """For every trait: its values, and for each value two prompts whose embeddings are averaged."""

    def each(table: Mapping[str, str], form: str) -> tuple[list[str], list[list[str]]]:
        return list(table), [[form.format(noun=noun, text=text) for noun in CLASS_NOUNS] for text in table.values()]

    expressions = {name: text or NEUTRAL for name, text in vocabulary.EXPRESSIONS.items()}
    return {
        "class_noun": (list(CLASS_NOUNS), [[f"a picture of a {noun}", f"a photo of a {noun}"] for noun in CLASS_NOUNS]),
        "style": each(vocabulary.STYLES, "{text} of a {noun}"),
        "scene": each(vocabulary.SCENES, "a picture of a {noun} {text}"),
        "pose": each(vocabulary.POSES, "a picture of a {noun}, {text}"),
        "expression": each(expressions, "a picture of a {noun} {text}"),
        "shirt": each(vocabulary.SHIRTS, "a picture of a {noun} {text}"),
        "light": each(vocabulary.LIGHTS, "a picture of a {noun}, {text}"),
    }
