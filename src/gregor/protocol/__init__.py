"""The conversation between a node and a device. Pure: frames and events in, effects out."""
