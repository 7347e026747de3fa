"""Three ways to guess the next tokens, behind one interface (`base.py`): a small model, the target's first layers, a lookup."""
