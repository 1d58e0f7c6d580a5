"""Autoregressive language models: training and, in time, faster decoding."""
