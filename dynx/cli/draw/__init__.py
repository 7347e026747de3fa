"""`dynx draw`."""
