"""Floor 2: what every task stands on: its configuration, folder, processes, cells in a sweep, and progress."""
