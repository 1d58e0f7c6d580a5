"""BeyondBench: problems generated afresh and checked by computation (arXiv 2509.24210)."""
