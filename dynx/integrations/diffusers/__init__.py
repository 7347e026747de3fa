"""diffusers: `attach` makes a loaded pipeline draw in its profile's steps, `detach` gives it its own call back.

attach(pipe)
pipe("a lighthouse", generator=generator).images     # the same call, the same output
pipe.dynx.stats                                      # what the latest call cost, or why the pipeline's own steps ran
detach(pipe)
"""

from dynx.integrations.diffusers.attachment import PipelineAttachment, PipelineStats, attach, detach

__all__ = ["PipelineAttachment", "PipelineStats", "attach", "detach"]
