"""Floor 2, above running: what dashboards are told of a run: numbers, tables, grids, and what was made from what; never a name."""
