"""`python -m metalora.miniworld.build out=DIR`: make the mini world's weights; run it again to continue."""

import sys
from collections.abc import Sequence
from pathlib import Path

from metalora.core.errors import UserError


def main(arguments: Sequence[str]) -> int:
    """Build everything in `out`; the weights end up in `out/weights`."""
    out = None
    for word in arguments:
        name, _, value = word.partition("=")
        if name != "out" or not value:
            raise UserError("unknown option", expected="out=DIR", got=word, key=name)
        out = Path(value)
    if out is None:
        raise UserError("no folder for the build", expected="out=DIR", key="out")
    from metalora.miniworld.build.chain import SHIPPED, build

    weights = build(out, chain=SHIPPED, command="python -m metalora.miniworld.build out=DIR")
    print(f"weights in {weights}; measure them with: python -m metalora.miniworld.quality weights={weights}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(f"error: {error}")
