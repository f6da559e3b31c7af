"""Figures: each takes a tidy table and returns a matplotlib figure; nothing here computes results."""
