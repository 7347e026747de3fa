"""The names that a segment's graph has beside those of the model's inputs."""

HIDDEN = "hidden"
"""Input that takes the hidden states (R, T, D) of the segment before."""
