"""Exits attached to a transformers classifier, which then runs block by block, checked against the unchanged model."""
