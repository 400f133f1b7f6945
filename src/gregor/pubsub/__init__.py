"""The pub/sub through which nodes notify each other of stored messages."""
