"""The profile cache: a folder of JSON documents, one per key, with their arrays beside them.

    generate-story-0f3a9c1b22d4.json
    generate-story-0f3a9c1b22d4.91b2c07d.safetensors    named after its content too
    .0f3a9c1b22d4.lock

A file that can't be trusted (torn, edited, of another schema, renamed) is reported in one line and passed over: a cache
must never stop the run that it would have sped up. Writers of one key take turns under a lock and replace files whole.
Readers take no lock: the document names its arrays by content, and a replaced profile's arrays stay until the next
save, so whoever has just read the old document still finds the bytes that belong to it.

Looking up and listing load neither torch nor NumPy.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import hashlib
import os
import re
import secrets
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynx.errors import DynxError, InvalidInput
from dynx.runtime.profile import ArraysFile, Profile, ProfileError, ProfileFault, read_arrays, unpack, write_arrays

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from dynx.runtime.profile import ProfileKey

LOCK_SECONDS = 10.0  # writing takes milliseconds; a lock held longer belongs to a process that was stopped
SLUG_LENGTH = 40
PREFIX_LENGTH = 4  # the shortest beginning of an id that may stand for it


class StoreError(DynxError):
    """The profile folder, or a file asked for, can't be read or written."""


def cache_folder(env: Mapping[str, str] | None = None) -> Path:
    """Where dynx keeps what it can make again: `DYNX_CACHE_DIR`, taken literally, or else the platform's cache."""
    override = (os.environ if env is None else env).get("DYNX_CACHE_DIR")
    if override:
        return Path(override)
    import platformdirs

    return platformdirs.user_cache_path("dynx", appauthor=False)


def profiles_folder(env: Mapping[str, str] | None = None) -> Path:
    """Where profiles lie inside the cache folder."""
    return cache_folder(env) / "profiles"


@dataclass(frozen=True)
class _Entry:
    """A file that could be a profile, and what reading it gave."""

    path: Path
    id: str | None  # as the file's name has it
    profile: Profile | None
    error: ProfileError | None


@functools.lru_cache(maxsize=64)
def _parsed(content: bytes) -> Profile:
    """Read a profile; a plan looks through all of a model's several times. Raises `ProfileError`."""
    return Profile.from_json(content)


class ProfileStore:
    """The profiles in one folder, which need not exist yet; `warn` gets each complaint as one printable line."""

    def __init__(self, folder: Path, warn: Callable[[str], None], *, torch_version: str | None = None) -> None:
        self.folder = folder
        self._warn = warn
        self._torch = torch_version  # None: whichever is installed

    def find(self, key: ProfileKey) -> Profile | None:
        """Return the profile measured for exactly this key, or None after at most one warning that says why.

        Warned of are a file that can't be trusted, one measured under another torch (major.minor), and, where there is
        no file, a profile that would fit had it not been measured on another device or with other threads. A cache
        without any is silent.
        """
        for entry in self._entries(f"*-{key.id}.json"):
            if entry.profile is None or entry.profile.key != key:
                self._report(entry)
                return None
            try:
                self._blob(entry.profile)
            except ProfileError as error:
                self._report(replace(entry, error=error))
                return None
            if reason := self.stale(entry.profile):
                self._say(f"profile {entry.path.name} ignored: {reason}; calibrate again")
                return None
            return entry.profile
        foreign = [profile for profile, differences in self.near(key) if differences == ("device",)]
        if foreign:
            said = " or ".join(sorted({profile.key.told_apart(key, device_name(profile)) for profile in foreign}))
            self._say(f"the profile for {foreign[0].model_name} was measured {said}, and isn't used")
        return None

    def near(self, key: ProfileKey) -> Sequence[tuple[Profile, tuple[str, ...]]]:
        """List profiles of the same task and model that don't fit, and in which fields of the key, nearest first."""
        found = []
        for entry in self._entries(f"{_slug(key.task)}-*.json"):
            profile = entry.profile
            if profile and profile.key != key and (profile.key.task, profile.key.model) == (key.task, key.model):
                found.append((profile, profile.key.differences(key)))
        return sorted(found, key=lambda item: len(item[1]))

    def stale(self, profile: Profile) -> str | None:
        """Say why the installed libraries make a profile's measurements worthless, or None."""
        if self._torch is None:
            with contextlib.suppress(metadata.PackageNotFoundError):
                self._torch = metadata.version("torch")  # reads a text file; imports nothing
        measured = profile.versions.get("torch")
        if self._torch is None or (measured and _minor(measured) == _minor(self._torch)):
            return None
        return f"it was measured with torch {measured or 'of unknown version'}, and {self._torch} is installed"

    def arrays(self, profile: Profile) -> dict[str, NDArray[Any]]:
        """Read a profile's arrays, none for a profile without. Raises `ProfileError` for missing or altered ones."""
        blob = self._blob(profile)
        return {} if blob is None else read_arrays(blob)

    def save(self, profile: Profile, arrays: Mapping[str, NDArray[Any]] | None = None) -> Path:
        """Write a profile whole or not at all, over the one with the same key, and return the document's path.

        `arrays=None` keeps the arrays that the profile names, `{}` drops them. Raises `StoreError` when the folder
        can't be written (which is no reason to stop) and `ProfileError` for what a profile can't hold.
        """
        blob = self._blob(profile) if arrays is None else write_arrays(arrays) if arrays else None
        return self._store(profile, blob)

    def get(self, reference: str) -> Profile:
        """Return the profile with this id, beginning of an id (4 digits or more), or model name.

        Raises `InvalidInput` with the candidates when none or several match, `ProfileError` when it can't be trusted.
        """
        entry = self._resolve(reference)
        if entry.profile is None:
            raise entry.error or StoreError(f"can't read {entry.path}")
        self._blob(entry.profile)
        return entry.profile

    def remove(self, reference: str) -> Path:
        """Delete the profile that `get` would return, with its arrays, and return the path it had.

        A damaged file can be removed too, by its id or its name. Raises `InvalidInput` as `get`, and `StoreError`.
        """
        entry = self._resolve(reference)
        with self._lock(entry.id or entry.path.stem):
            try:
                entry.path.unlink(missing_ok=True)
                if entry.id:
                    for path in self._files(entry.id):
                        path.unlink(missing_ok=True)
            except OSError as error:
                raise StoreError(f"can't remove {entry.path}: {error.strerror or error}") from error
        return entry.path

    def export(self, reference: str, path: Path) -> Path:
        """Write one file that holds everything: the document, its arrays inside as base64.

        JSON with or without arrays, so that there is one format to read, mail, diff and check; base64 costs a third
        more bytes, and profiles are small. Raises as `get`, and `StoreError` when `path` can't be written.
        """
        profile = self.get(reference)
        text = profile.to_json(embed=self._blob(profile))
        try:
            path.write_text(text, encoding="utf-8")  # in place: the path may be a pipe or a terminal
        except OSError as error:
            raise StoreError(f"can't write {path}: {error.strerror or error}") from error
        return path

    def import_file(self, path: Path, *, device: str | None = None) -> Profile:
        """Check an exported file through and through, then store and return it.

        Warned of, and stored all the same: a profile from another device than the fingerprint `device`, one from
        another torch, one that replaces another. Raises `ProfileError` when the file is wrong and `StoreError` when it
        can't be read or stored.
        """
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"can't read {path}: {error.strerror or error}") from error
        try:
            profile, blob = unpack(data)
        except ProfileError as error:
            raise ProfileError(error.kind, f"{path.name} isn't imported: {error}", hint=error.hint) from error
        replaced = self._newest(profile.key.id)
        self._store(profile, blob)
        if device is not None and profile.key.device != device:
            said = profile.key.told_apart(replace(profile.key, device=device), device_name(profile))
            self._say(f"profile {profile.key.id} was measured {said}, unused here")
        if reason := self.stale(profile):
            self._say(f"profile {profile.key.id} won't be used: {reason}")
        if replaced:
            self._say(f"profile {profile.key.id} replaces the one of {replaced.created}")
        return self.get(profile.key.id)

    def list(self) -> Sequence[Profile]:
        """List every readable profile by task, model and time, whatever device it is for; warn of each other file.

        Arrays are looked for and not read; `get` and `find` check them.
        """
        found = []
        for entry in self._entries("*.json"):
            if entry.profile is None:
                self._report(entry)
            else:
                found.append(entry.profile)
        return sorted(found, key=lambda profile: (profile.key.task, profile.model_name, profile.created))

    def _entries(self, pattern: str) -> Sequence[_Entry]:
        """Read what matches; of several files with one id (a model renamed) only the newest readable one."""
        newest: dict[str, _Entry] = {}
        try:
            paths = sorted(path for path in self.folder.glob(pattern) if path.name[0] != ".")
        except OSError:
            return ()
        for path in paths:
            name = re.search(r"-([0-9a-f]{12})\.json$", path.name)
            entry = self._read(path, name[1] if name else None)
            slot = entry.id or path.name
            if slot not in newest or _age(newest[slot]) < _age(entry):
                newest[slot] = entry
        return tuple(newest.values())

    def _read(self, path: Path, identity: str | None) -> _Entry:
        try:
            profile = _parsed(path.read_bytes())
            if profile.key.id != identity:
                message, hint = f"it holds the profile {profile.key.id}", "importing a file adds it"
                raise ProfileError(ProfileFault.ID_MISMATCH, message, hint=hint)
            if profile.arrays and not (self.folder / profile.arrays.file).is_file():
                raise ProfileError(ProfileFault.ARRAYS_MISSING, f"its arrays ({profile.arrays.file}) are missing")
        except ProfileError as error:
            return _Entry(path, identity, None, error)
        except OSError as error:
            fault = ProfileError(ProfileFault.UNREADABLE, f"can't be read ({error.strerror or error})")
            return _Entry(path, identity, None, fault)
        return _Entry(path, identity, profile, None)

    def _newest(self, identity: str) -> Profile | None:
        entries = self._entries(f"*-{identity}.json")
        return entries[0].profile if entries else None

    def _resolve(self, reference: str) -> _Entry:
        entries = self._entries("*.json")
        levels: tuple[Callable[[_Entry], bool], ...] = (
            lambda entry: reference in (entry.id, entry.path.name),
            lambda entry: entry.profile is not None and entry.profile.model_name == reference,
            lambda entry: len(reference) >= PREFIX_LENGTH and (entry.id or "").startswith(reference.lower()),
        )
        for level in levels:
            found = [entry for entry in entries if level(entry)]
            if len(found) == 1:
                return found[0]
            if found:
                hint = "one of " + "; ".join(_describe(entry) for entry in found)
                raise InvalidInput(_one_line(f"{reference!r} fits {len(found)} profiles"), hint=_one_line(hint))
        names = {
            name: entry for entry in entries for name in (entry.id, entry.profile and entry.profile.model_name) if name
        }
        close = difflib.get_close_matches(reference, names, n=1)
        hint = f"closest is {_describe(names[close[0]])}; " if close else ""
        hint += "there are " + "; ".join(_describe(entry) for entry in entries) if entries else "there are none yet"
        raise InvalidInput(_one_line(f"no profile {reference!r}"), hint=_one_line(hint))

    def _blob(self, profile: Profile) -> bytes | None:
        """Read the arrays file's bytes, checked; None when the profile has none. Raises `ProfileError`."""
        if profile.arrays is None:
            return None
        try:
            blob = (self.folder / profile.arrays.file).read_bytes()
        except OSError as error:
            message = f"its arrays ({profile.arrays.file}) can't be read: {error.strerror or error}"
            raise ProfileError(ProfileFault.ARRAYS_MISSING, message) from error
        profile.arrays.check(blob)
        return blob

    def _store(self, profile: Profile, blob: bytes | None) -> Path:
        stem = f"{_slug(profile.key.task)}-{_slug(profile.model_name)}-{profile.key.id}"
        arrays = None
        if blob is not None:
            sha256 = hashlib.sha256(blob).hexdigest()
            arrays = ArraysFile(f"{stem}.{sha256[:8]}.safetensors", len(blob), sha256)
        document = replace(profile, arrays=arrays).to_json().encode("utf-8")
        path = self.folder / f"{stem}.json"
        with self._lock(profile.key.id):
            before = self._newest(profile.key.id)
            try:
                if arrays and blob is not None:
                    _replace(self.folder / arrays.file, blob)
                _replace(path, document)
            except OSError as error:
                raise StoreError(f"can't write {path}: {error.strerror or error}", hint=_HINT) from error
            kept = {path.name, *(item.file for item in (arrays, before and before.arrays) if item)}
            for leftover in self._files(profile.key.id):
                if leftover.name not in kept:
                    with contextlib.suppress(OSError):
                        leftover.unlink()
        return path

    def _files(self, identity: str) -> Sequence[Path]:
        """List everything written for an id, except its lock: documents, arrays, what a crash left half-written."""
        return [
            path for path in self.folder.glob(f"*-{identity}.*") if path.suffix in (".json", ".safetensors", ".tmp")
        ]

    @contextlib.contextmanager
    def _lock(self, identity: str) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / f".{identity}.lock", timeout=LOCK_SECONDS)
            lock.acquire()
        except Timeout as error:
            message = f"another process has kept the profile {identity} locked for {LOCK_SECONDS:.0f} s"
            raise StoreError(message, hint=f"is one stopped? The lock is {error.lock_file}") from error
        except (OSError, NotImplementedError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StoreError(f"can't write in {self.folder}: {reason}", hint=_HINT) from error
        try:
            yield
        finally:
            lock.release()

    def _report(self, entry: _Entry) -> None:
        self._say(f"profile {entry.path.name} ignored: {entry.error or 'it holds another key'}")

    def _say(self, text: str) -> None:
        self._warn(_one_line(text))


_HINT = "DYNX_CACHE_DIR names another cache folder"


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old content or the new, on disk and not only in memory."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # some systems can't sync a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _slug(name: str) -> str:
    """Reduce a name to lower-case letters, digits and hyphens: safe in any file system, and in a glob."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower())[:SLUG_LENGTH].strip("-") or "unnamed"


def _minor(version: str) -> list[str]:
    return version.split("+")[0].split(".")[:2]


def _age(entry: _Entry) -> str:
    return entry.profile.created if entry.profile else ""


def device_name(profile: Profile) -> str:
    """Return the name of the machine that a profile was measured on."""
    return str(profile.device.get("name") or profile.key.device)


def _describe(entry: _Entry) -> str:
    if entry.profile is None:
        return f"{entry.path.name} (damaged)"
    return f"{entry.id} ({entry.profile.key.task}, {entry.profile.model_name}, {device_name(entry.profile)})"


def _one_line(text: str) -> str:
    """Drop line breaks and escape sequences, which names in other people's files may hold."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
