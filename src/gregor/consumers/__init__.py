"""The parts that pass on."""
