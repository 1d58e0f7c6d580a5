"""Layers and row-wise tensor functions that several families share."""
