"""Floor 1: the identity bank, its injection into a denoiser, its optimizer, and what is written to disk."""
