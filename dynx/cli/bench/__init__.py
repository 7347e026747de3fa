"""`dynx bench`."""
