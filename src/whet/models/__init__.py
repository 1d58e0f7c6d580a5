"""Model classes, the adapter that decoders use, and loading with checks."""
