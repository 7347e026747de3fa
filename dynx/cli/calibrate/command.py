"""`dynx calibrate`: measures a model on this device, and manages stored profiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynx.cli import profiles
from dynx.cli.console import Terminal
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dynx.cli.options.calibrate import Options


def run(options: Options) -> None:
    """Run one of the actions on profiles, or a calibration."""
    actions: list[tuple[bool, str, Callable[[Options, Terminal], None]]] = [
        (options.device_info, "--device-info", profiles.device_info),
        (options.list_, "--list", profiles.list_profiles),
        (options.show is not None, "--show", profiles.show),
        (options.export is not None, "--export", profiles.export),
        (options.import_ is not None, "--import", profiles.import_profile),
        (options.remove is not None, "--remove", profiles.remove),
        (options.check, "--check", check),
    ]
    wanted = [(name, action) for asked, name, action in actions if asked]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(name for name, _ in wanted)} exclude each other")
    if options.output is not None and options.export is None:
        raise UsageError("--output requires --export")
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    (wanted[0][1] if wanted else calibrate)(options, terminal)


def check(options: Options, terminal: Terminal) -> None:
    """Test a stored profile's promise on fresh inputs."""
    from dynx.cli.calibrate import check

    check.check(options, terminal)


def calibrate(options: Options, terminal: Terminal) -> None:
    """Find the model's task, and run that task's calibration."""
    from dynx.runtime import loading

    source = loading.find(
        options.model,
        offline=options.offline,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
    )
    task = loading.task_of(source)
    if task == "draw":
        from dynx.cli.calibrate.drawing import calibrate as learn
    elif task == "classify":
        from dynx.cli.calibrate.classification import calibrate as learn
    else:
        from dynx.cli.calibrate.generation import calibrate as learn
    learn(options, terminal)
