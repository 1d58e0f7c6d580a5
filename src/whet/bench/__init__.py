"""The harness behind `whet benchmark` and the proofs: variants side by side in one run."""
