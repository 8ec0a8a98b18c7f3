"""The mini world: synthetic people rendered in 3-D, and the tiny models that are trained on them."""
