"""The one exception a person is meant to read: what happened, what was expected, what came, which key changes it."""


class UserError(Exception):
    """Bad input. The command line prints it as one line and exits with status 2.

    Args:
        what: what went wrong, in plain words.
        expected: what would have been right.
        got: what came instead.
        key: the configuration key (or file) that changes it.
    """

    def __init__(self, what: str, *, expected: str = "", got: str = "", key: str = "") -> None:
        parts = [what]
        if expected:
            parts.append(f"expected {expected}")
        if got:
            parts.append(f"got {got}")
        if key:
            parts.append(f"key: {key}")
        super().__init__("; ".join(parts))
        self.what, self.expected, self.got, self.key = what, expected, got, key

    @property
    def told(self) -> str:
        """The line without its key: for lists, and inside another error, which has a key of its own."""
        return str(UserError(self.what, expected=self.expected, got=self.got))


def how_to_install(extra: str) -> str:
    """What brings an extra of this package. (pip cannot: facenet-pytorch's old pins need uv's overrides.)"""
    return f"`make setup`, or `uv pip install -e '.[{extra}]'` in the checkout"


INTERRUPTED, TERMINATED = 130, 143
"""Exit statuses after SIGINT and SIGTERM: what was trained is saved, the same command continues."""
