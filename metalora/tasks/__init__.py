"""Floor 3: one file per task, read top to bottom; the only floor that sees the composed configuration."""
