"""`dynx calibrate`."""
