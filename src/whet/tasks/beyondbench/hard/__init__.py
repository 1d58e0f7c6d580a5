"""The hard suite of BeyondBench: 10 tasks."""
