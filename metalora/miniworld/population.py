"""The population of the mini world: who belongs to which split, decided by name alone."""

from metalora.core.errors import UserError
from metalora.miniworld.identity import Identity, draw_identity

CLASS_NOUNS = ("man", "woman")
# base: the tiny models are trained on them; stage1: the prior is; validation: settings are chosen on them;
# phd and ffhq: Mini-PHD's; test: those of the trade-off study.
SPLITS = ("base", "stage1", "validation", "phd", "ffhq", "test")


def identity(split: str, class_noun: str, index: int) -> Identity:
    """The person number `index` of a split; the same arguments always give the same person.

    Args:
        split: one of `SPLITS`.
        class_noun: "man" or "woman".
        index: zero or more.

    Raises:
        UserError: unknown split or class.
    """
    if split not in SPLITS:
        raise UserError("unknown split of the mini world", expected=" or ".join(SPLITS), got=split, key="split")
    if class_noun not in CLASS_NOUNS:
        raise UserError("unknown class", expected=" or ".join(CLASS_NOUNS), got=class_noun, key="class_noun")
    if index < 0:
        raise UserError("a person's index counts from zero", expected="0 or more", got=str(index), key="index")
    return draw_identity(f"{split}-{class_noun}-{index:04d}", class_noun=class_noun)


def people(split: str, class_noun: str, *, count: int, first: int = 0) -> list[Identity]:
    """`count` people of one class in the order of their index."""
    return [identity(split, class_noun, index) for index in range(first, first + count)]
