"""The referee: arms run side by side, ratios with intervals, gates with three verdicts, one report.

`harness`, `statistics`, `gate` and `report` know no task; `generation` builds the arms for language models,
`classification` those for classifiers, and `drawing` those for pipelines that draw.
"""

PEERS = ("transformers",)
"""What dynx can be measured against."""
