"""`dynx calibrate`: measure a model here, and keep house among the stored profiles."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dynx.cli.console import Terminal
from dynx.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from dynx.cli.options import Backend, Color, Dtype, Quantize
    from dynx.runtime.profile import Profile

SCHEMA = "dynx.calibrate/1"

BUDGET = 60.0
"""Seconds, unless asked otherwise; pipelines that draw have their own."""


def refuse(options: Options, names: Sequence[str], what: str) -> None:
    """Raise UsageError where an option was given that is for another task: `what` is the model's."""
    for name in names:
        if getattr(options, name):
            shown = "--" + name.replace("_", "-")
            raise UsageError(f"{shown} means nothing for {options.model}, which {what}")


@dataclass(frozen=True)
class Options:
    """The command line of `dynx calibrate`, by parameter name."""

    model: str
    draft: str
    data: str | None
    tsv: bool
    column: str | None
    field: str | None
    max_disagreement: float
    confidence: float
    within: float | None
    batch_size: int
    max_length: int | None
    quality: float | None
    guidance: float | None
    negative: str | None
    size: str | None
    plot: str | None
    budget: float | None
    dry_run: bool
    check: bool
    device_info: bool
    list_: bool
    show: str | None
    export: str | None
    output: str | None
    import_: str | None
    remove: str | None
    json: bool
    device: str
    dtype: Dtype
    threads: int | None
    backend: Backend | None
    quantize: Quantize | None
    allow_pickle: bool
    trust_remote_code: bool
    offline: bool
    quiet: int
    verbose: int
    color: Color


def run(options: Options) -> None:
    """One of the housekeeping actions, or a calibration."""
    actions: list[tuple[bool, str, Callable[[Options, Terminal], None]]] = [
        (options.device_info, "--device-info", device_info),
        (options.list_, "--list", list_profiles),
        (options.show is not None, "--show", show),
        (options.export is not None, "--export", export),
        (options.import_ is not None, "--import", import_profile),
        (options.remove is not None, "--remove", remove),
        (options.check, "--check", check),
    ]
    wanted = [(name, action) for asked, name, action in actions if asked]
    if len(wanted) > 1:
        raise UsageError(f"{' and '.join(name for name, _ in wanted)} exclude each other")
    if options.output is not None and options.export is None:
        raise UsageError("--output says where --export writes; there is no --export")
    terminal = Terminal(quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json)
    (wanted[0][1] if wanted else calibrate)(options, terminal)


def check(options: Options, terminal: Terminal) -> None:
    """Test on fresh inputs what a stored profile promises."""
    from dynx.cli.calibrate import check

    check.check(options, terminal)


def calibrate(options: Options, terminal: Terminal) -> None:
    """Find out what kind of model it is, and learn what its task asks for."""
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


def store(profile: Profile, terminal: Terminal, arrays: Mapping[str, Any] | None = None) -> None:
    """Keep what was learned; where that can't be, say so and go on."""
    from dynx.runtime.profile_store import ProfileStore, StoreError, profiles_folder

    try:
        path = ProfileStore(profiles_folder(), terminal.warn).save(profile, arrays)
        terminal.notice(f"profile {profile.key.id} stored in {path}")
    except StoreError as e:
        terminal.warn(f"the profile can't be stored ({e}); set DYNX_CACHE_DIR to a folder that can be written")


def device_info(options: Options, terminal: Terminal) -> None:
    """What this machine has, and the choices that follow."""
    from dynx.runtime.device import choose_device, choose_dtype, choose_threads, probe

    machine = probe(measure_bandwidth=True)
    device = choose_device(options.device, machine)
    wanted = None if str(options.dtype) == "auto" else str(options.dtype)
    choices: dict[str, Any] = {
        "device": device,
        "dtype": choose_dtype(wanted, device.value, machine),
        "threads": choose_threads(options.threads, machine),
    }
    if options.json:
        picked = {k: {"value": d.value, "reason": d.reason} for k, d in choices.items()}
        terminal.document(machine.describe() | {"choices": picked})
        return
    rows = machine.rows() + [(f"→ {k}", f"{d.value} ({d.reason})") for k, d in choices.items()]
    width = max(len(label) for label, _ in rows)
    terminal.write("".join(f"{label:<{width}}  {value}\n" for label, value in rows))


def _store(terminal: Terminal) -> Any:
    from dynx.runtime.profile_store import ProfileStore, profiles_folder

    return ProfileStore(profiles_folder(), terminal.warn)


def list_profiles(options: Options, terminal: Terminal) -> None:
    """A line per profile."""
    store = _store(terminal)
    profiles: list[Profile] = list(store.list())
    if options.json:
        rows = [
            {
                "id": p.key.id,
                "task": p.key.task,
                "model": p.model_name,
                "dtype": p.key.dtype,
                "created": p.created,
                "stale": store.stale(p),
                "summary": p.decision["summary"],
            }
            for p in profiles
        ]
        terminal.document({"schema": "dynx.profiles/1", "profiles": rows})
        return
    if not profiles:
        terminal.notice(f"no profiles in {store.folder}; dynx calibrate makes one")
    for p in profiles:
        note = f"  [unused: {store.stale(p)}]" if store.stale(p) else ""
        name = "".join(c for c in p.model_name if c.isprintable())
        terminal.write(f"{p.key.id}  {p.key.task}  {name}  {p.key.dtype}  {p.created}{note}\n")


def show(options: Options, terminal: Terminal) -> None:
    """A stored profile, as it is."""
    terminal.write(_store(terminal).get(options.show).to_json())


def export(options: Options, terminal: Terminal) -> None:
    """A stored profile as one file."""
    if options.output not in (None, "-"):
        terminal.notice(f"wrote {_store(terminal).export(options.export, Path(options.output))}")
        return
    with TemporaryDirectory() as folder:
        file = _store(terminal).export(options.export, Path(folder) / "profile.json")
        terminal.write(file.read_text(encoding="utf-8"))


def import_profile(options: Options, terminal: Terminal) -> None:
    """Store a file that --export wrote."""
    profile = _store(terminal).import_file(Path(options.import_ or ""))
    terminal.notice(f"stored profile {profile.key.id} for {profile.model_name}")


def remove(options: Options, terminal: Terminal) -> None:
    """Delete a stored profile."""
    terminal.notice(f"removed {_store(terminal).remove(options.remove)}")
