"""Floor 3: one file per task, read top to bottom, over `running` and `tracking`."""
