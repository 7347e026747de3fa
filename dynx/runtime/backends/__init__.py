"""Execution backends behind one small interface; `interface.py` declares what a model must offer."""
