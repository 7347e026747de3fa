"""OpenVINO: decoders and blocks converted from PyTorch, and their weights compressed."""
