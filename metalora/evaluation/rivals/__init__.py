"""Rivals that the paper's methods are compared with, through the same prompts, noise and scores."""
