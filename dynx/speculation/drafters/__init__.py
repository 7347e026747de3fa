"""Three drafters behind one interface (`base.py`): a draft model, early exit (self-speculation) and prompt lookup."""
