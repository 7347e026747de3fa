"""Diffusion pipelines: as many network calls as the picture needs, on a grid made for the checkpoint.

`families` knows what a pipeline is, `denoiser` counts and answers its network's calls, `solver` and `sampler` stand in for its
scheduler, `engine` draws. `schedule` is what they are told; calibration makes it from `trajectory`, `grid` and `quality`.
"""
