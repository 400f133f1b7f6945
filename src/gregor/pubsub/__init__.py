"""How nodes tell each other that something was stored."""
