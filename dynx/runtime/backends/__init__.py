"""Kernels behind one small interface; `interface.py` says what a model must do to be decoded by dynx."""
