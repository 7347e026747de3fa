"""A classifier cut into a few segments, each a graph that OpenVINO runs: rows may exit at the borders between them."""
