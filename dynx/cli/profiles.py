"""Manages stored profiles and describes this device: list, show, export, import, remove."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from dynx.errors import UsageError

if TYPE_CHECKING:
    from dynx.cli.console import Terminal
    from dynx.cli.options.calibrate import Options
    from dynx.runtime.profile import Profile


def device_info(options: Options, terminal: Terminal) -> None:
    """Print this machine's devices, and the resulting decisions."""
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
    """Print a line per profile."""
    from dynx.runtime.profile import FORMS, TEXT

    store = _store(terminal)
    profiles: list[Profile] = list(store.list())
    if options.json:
        from dynx.schemas.documents.fields import as_document
        from dynx.schemas.documents.profiles import ListedProfile, Profiles

        rows = [
            ListedProfile(
                id=p.key.id,
                task=p.key.task,
                model=p.model_name,
                dtype=p.key.dtype,
                form=p.key.form,
                created=p.created,
                stale=store.stale(p),
                summary=p.decision["summary"],
            )
            for p in profiles
        ]
        terminal.document(as_document(Profiles(profiles=rows)))
        return
    if not profiles:
        terminal.notice(f"no profiles in {store.folder}; dynx calibrate makes one")
    for p in profiles:
        form = "" if p.key.form == TEXT else f"  [{FORMS[p.key.form]}]"
        note = f"  [unused: {store.stale(p)}]" if store.stale(p) else ""
        name = "".join(c for c in p.model_name if c.isprintable())
        terminal.write(f"{p.key.id}  {p.key.task}  {name}  {p.key.dtype}  {p.created}{form}{note}\n")


def show(options: Options, terminal: Terminal) -> None:
    """Print a stored profile as it is; of a pipeline also, on stderr, its grid as arguments that work without dynx."""
    store = _store(terminal)
    profile: Profile = store.get(options.show)
    terminal.write(profile.to_json())
    if profile.key.task == "draw":
        from dynx.diffusion.fixed_grid import as_arguments
        from dynx.runtime.profile import ProfileError

        try:
            lines = as_arguments(profile, store.arrays(profile))
        except ProfileError:
            return
        if lines:
            terminal.notice(lines)


def export(options: Options, terminal: Terminal) -> None:
    """Write a stored profile as one file, or dynx's part into a model's folder."""
    folder = Path(options.export or "")
    if folder.is_dir():
        from dynx.integrations.folder import write

        if options.output is not None:
            raise UsageError(f"--output is for a profile, and {options.export} is a folder")
        for written in write(folder):
            terminal.notice(f"wrote {written}")
        return
    if options.output not in (None, "-"):
        terminal.notice(f"wrote {_store(terminal).export(options.export, Path(options.output))}")
        return
    with TemporaryDirectory() as place:
        file = _store(terminal).export(options.export, Path(place) / "profile.json")
        terminal.write(file.read_text(encoding="utf-8"))


def import_profile(options: Options, terminal: Terminal) -> None:
    """Store a file that --export wrote."""
    profile = _store(terminal).import_file(Path(options.import_ or ""))
    terminal.notice(f"stored profile {profile.key.id} for {profile.model_name}")


def remove(options: Options, terminal: Terminal) -> None:
    """Delete a stored profile."""
    terminal.notice(f"removed {_store(terminal).remove(options.remove)}")
