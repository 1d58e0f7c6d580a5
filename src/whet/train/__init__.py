"""Efficient pre-training: methods that change how a model is trained."""
