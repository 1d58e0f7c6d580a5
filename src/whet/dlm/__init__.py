"""Masked diffusion language models: decoding on one canvas, and training."""
