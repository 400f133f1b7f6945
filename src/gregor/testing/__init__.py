"""Test tools that ship with the package: for authors of state machines, pub/subs and clients."""
