"""A classifier with exits: its blocks taken apart, run layer by layer, and checked against the model as it was."""
