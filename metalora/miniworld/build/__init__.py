"""Building the mini world's tiny models: seeded, checkpointed, resumable, with provenance."""
