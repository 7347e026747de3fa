"""How the shipped models were trained, from nothing; each is a script and a module."""
