"""The referee: arms run side by side, ratios with intervals, gates with three verdicts, one report.

`harness`, `statistics`, `gate` and `report` know no task; `generation` builds the arms for language models,
`classification` those for classifiers, and `drawing` those for pipelines that draw.
"""

from importlib.resources import files

PEERS = ("transformers",)
"""What dynx can be measured against."""


def workflow() -> str:
    """A workflow for GitHub Actions that gates a repository, ready to be put into `.github/workflows/`."""
    return files(__name__).joinpath("workflow.yml").read_text(encoding="utf-8")
