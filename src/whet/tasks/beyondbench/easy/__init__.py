"""The easy suite of BeyondBench: 29 tasks."""
