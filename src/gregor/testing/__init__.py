"""What Gregor is tested with, shipped for whoever writes a state machine, a pub/sub or a client."""
