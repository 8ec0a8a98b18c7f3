"""Floor 2: from folders of images to scores, and from scores to curves."""
