"""The medium suite of BeyondBench: 5 tasks."""
