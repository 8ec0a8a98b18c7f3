"""Floor 2, above running: what dashboards are told of a run; numbers, tables, grids and hashes, never a name."""
