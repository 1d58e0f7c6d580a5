"""Training data: batches made from a key, so that a resumed run sees the same ones."""
