"""Benchmark runner: arms run side by side, ratios with intervals, gates with three verdicts, one report.

`runner`, `statistics`, `gates` and `report` work for any task. `arms.generation` builds the arms for language models,
`arms.classification` those for classifiers, and `arms.drawing` those for pipelines that draw.
"""

PEERS = ("transformers",)
"""Other libraries that dynx can be measured against."""
