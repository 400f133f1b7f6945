"""Real servers and node processes on this machine, and faults to inject into them."""
