"""Smaller models: pruning, factorization, quantization."""
