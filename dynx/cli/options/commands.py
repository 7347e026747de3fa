"""The five subcommands as declarations; imports nothing that runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli.options.bench import COMMAND as BENCH
from dynx.cli.options.calibrate import COMMAND as CALIBRATE
from dynx.cli.options.classify import COMMAND as CLASSIFY
from dynx.cli.options.draw import COMMAND as DRAW
from dynx.cli.options.generate import COMMAND as GENERATE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.cli.options import Command

COMMANDS: Mapping[str, Command] = {each.name: each for each in (GENERATE, CLASSIFY, DRAW, CALIBRATE, BENCH)}
"""Subcommands by name, in the order of help."""
