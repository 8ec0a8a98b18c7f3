"""Floor 2: what every task stands on: its configuration, its folder, its processes, its cells in a sweep, and its progress."""
