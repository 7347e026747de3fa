"""`dynx generate`."""
