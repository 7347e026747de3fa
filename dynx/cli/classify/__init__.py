"""`dynx classify`."""
