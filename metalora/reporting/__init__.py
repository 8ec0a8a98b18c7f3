"""Floor 2, above evaluation: figures, tables and the report. Reads scores and manifests, never computes a score."""
