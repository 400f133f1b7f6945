"""The parts that remember."""
