"""The referee: arms run side by side, ratios with intervals, gates with three verdicts, one report.

`harness`, `statistics`, `gate` and `report` know no task; `generation` builds the arms for language models and
`classification` those for classifiers.
"""

PEERS = ("transformers",)
"""What dynx can be measured against."""
