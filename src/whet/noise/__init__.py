"""Noise processes: how data are corrupted, and the objectives that undo it."""
