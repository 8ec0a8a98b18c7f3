"""`python -m metalora`, the same as `metalora`."""

from metalora.cli import main

main()
