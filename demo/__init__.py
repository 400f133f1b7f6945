"""The fleet demo: `python -m demo`."""
