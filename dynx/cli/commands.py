"""The five subcommands as declarations; imports nothing that runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.bench.options import COMMAND as BENCH
from dynx.cli.calibrate.options import COMMAND as CALIBRATE
from dynx.cli.classify.options import COMMAND as CLASSIFY
from dynx.cli.draw.options import COMMAND as DRAW
from dynx.cli.generate.options import COMMAND as GENERATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.cli.options import Command

COMMANDS: Mapping[str, Command] = {each.name: each for each in (GENERATE, CLASSIFY, DRAW, CALIBRATE, BENCH)}
"""Subcommands by name, in the order of help."""
