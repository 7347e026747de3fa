"""Loads torch and transformers without the parts that only training and compiling use.

Importing any model of transformers also imports torch's compiler, its distributed tensors, sympy and scipy, which takes longer
than torch itself; running a model calls none of them. After `install()` the code of those modules runs when one of their names
is first used. Nothing is left out: functions that they would decorate are recorded, and decorated when the module loads.

This replaces internals of torch and transformers, so it is limited in three ways. It is for processes that are dynx's own: a
program that imports dynx isn't touched. It turns itself off outside `TESTED_VERSIONS`. `DYNX_LAZY_IMPORTS=0` turns it off.
Without it everything works, and starts later: the first token took 3.1 s instead of 1.3 s on two cores of an EPYC.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import re
import sys
import threading
from importlib import metadata
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    StandIn = Callable[["LazyModule", str], Any]

VARIABLE = "DYNX_LAZY_IMPORTS"
"""Environment variable; `0` turns lazy imports off."""

TESTED_VERSIONS: dict[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "torch": ((2, 8), (2, 13)),
    "transformers": ((5, 23), (5, 24)),
}
"""First and last release (major, minor) of each library whose internals are known to be as they are used here."""

MAX_STRUCTURE_BYTES = 8 << 20
"""Largest cache file of transformers' import structure that is read; a larger one is damaged."""


class OnUse:
    """A module's names, imported when the first of them is used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self._name), name)


class LazyModule:
    """A module in `sys.modules` whose code hasn't run; `stand_ins` provide some of its names, any other name loads it."""

    def __init__(self, module: ModuleType, loader: Loader, stand_ins: dict[str, StandIn]) -> None:
        self.name, self.loaded = module.__name__, False
        self.decorated: list[tuple[str, Any]] = []  # decorator's name, function
        self._module, self._loader, self._lock = module, loader, threading.RLock()
        self._made = {name: make(self, name) for name, make in stand_ins.items()}
        self._started = False
        vars(module).update(self._made, __getattr__=self._missing)

    def _missing(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):  # code that inspects all modules looks these up
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return getattr(self.load(), name)

    def load(self) -> ModuleType:
        """Run the module's code, apply the recorded decorators, and replace the stand-ins that other modules hold."""
        with self._lock:
            if self._started:
                return self._module
            self._started = True
            module, names = self._module, vars(self._module)
            for name in (*self._made, "__getattr__"):
                names.pop(name, None)
            module.__loader__ = self._loader
            if module.__spec__ is not None:
                module.__spec__.loader = self._loader
            try:
                self._loader.exec_module(module)
            except BaseException:
                sys.modules.pop(module.__name__, None)
                raise
            for name, function in self.decorated:
                getattr(module, name)(function)
            self.loaded = True
            self._replace()
            return module

    def _replace(self) -> None:
        real = {id(stand_in): getattr(self._module, name, None) for name, stand_in in self._made.items()}
        for holder in list(sys.modules.values()):
            if getattr(holder, "__name__", "").startswith(("transformers.", "diffusers.")):
                for name, value in list(vars(holder).items()):
                    if id(value) in real:
                        setattr(holder, name, real[id(value)])


def _call_on_use(lazy: LazyModule, name: str) -> Callable[..., Any]:
    """Stand in for a function or class; the first call loads the module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(lazy.load(), name)(*args, **kwargs)

    return call


def _record_decorated(lazy: LazyModule, name: str) -> Callable[..., Any]:
    """Stand in for a decorator that only marks a function for the compiler; it is applied when the module loads."""

    def decorate(function: Any) -> Any:
        lazy.decorated.append((name, function))
        return function

    return decorate


def _disable_when_loaded(lazy: LazyModule, name: str) -> Callable[..., Any]:
    """Stand in for `disable`, which keeps the compiler out of a function; it is applied at the first call after loading."""

    def disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
        if function is None:
            return functools.partial(disable, recursive=recursive, **options)
        if isinstance(function, type) or not hasattr(function, "__name__"):
            return getattr(lazy.load(), name)(function, recursive, **options)
        real: Callable[..., Any] | None = None

        @functools.wraps(function)
        def kept_out(*args: Any, **kwargs: Any) -> Any:
            nonlocal real
            if not lazy.loaded:
                return function(*args, **kwargs)
            if real is None:
                real = getattr(lazy.load(), name)(function, recursive, **options)
            return real(*args, **kwargs)

        return kept_out

    return disable


def _attribute_holder(lazy: LazyModule, name: str) -> Any:
    """Stand in for `eval_frame`, whose class of compiled modules has no instances before the module loads."""

    class Inner:
        """The submodule; names other than those below load it."""

        class OptimizedModule:
            """Stands for the class of compiled modules, for `isinstance`."""

        def __getattr__(self, other: str) -> Any:
            return getattr(getattr(lazy.load(), name), other)

    return Inner()


LAZY: dict[str, dict[str, StandIn]] = {
    "torch._dynamo": {
        "allow_in_graph": _record_decorated,
        "assume_constant_result": _record_decorated,
        "disable": _disable_when_loaded,
        "eval_frame": _attribute_holder,
    },
    "torch._dynamo._trace_wrapped_higher_order_op": {"TransformGetItemToIndex": _call_on_use},
    "scipy.optimize": {"linear_sum_assignment": _call_on_use},
    "scipy.integrate": {},
    "scipy.stats": {},
    "diffusers.models.autoencoders": {},
    "diffusers.models.transformers": {},
}
"""Modules loaded lazily, and stand-ins for the names that other modules take from them while they are imported."""

INDEX_PACKAGES = frozenset({"diffusers.models.autoencoders", "diffusers.models.transformers"})
"""Packages of `LAZY` that only re-export their modules: importing one module doesn't load the package."""


class LazyFinder(MetaPathFinder):
    """Finds the modules of `LAZY`, and transformers' module that scans its own models."""

    def __init__(self) -> None:
        self._lazy: dict[str, LazyModule] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See the base class."""
        parent = self._lazy.get(name.rpartition(".")[0])
        if name not in LAZY:
            if parent is not None:
                if parent.name not in INDEX_PACKAGES:
                    parent.load()
                return None
            if name != "transformers.utils.import_utils":
                return None
        elif parent is not None and parent.loaded:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._defer if name in LAZY else _patch_import_utils)
        return spec

    def _defer(self, module: ModuleType, loader: Loader) -> None:
        self._lazy[module.__name__] = LazyModule(module, loader, LAZY[module.__name__])


class _Loader(Loader):
    """Wraps a loader; `run` executes the module instead."""

    def __init__(self, inner: Loader, run: Callable[[ModuleType, Loader], None]) -> None:
        self._inner, self._run = inner, run

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See the base class."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See the base class."""
        self._run(module, self._inner)

    def __getattr__(self, name: str) -> Any:  # such as `get_source`
        return getattr(self._inner, name)


def _patch_import_utils(module: ModuleType, loader: Loader) -> None:
    """Run transformers.utils.import_utils, then replace its scan of all models' sources and its check for distributed tensors."""
    loader.exec_module(module)
    names = vars(module)
    if "is_torch_distributed_available" in names and "WORLD_SIZE" not in os.environ:
        names["is_torch_distributed_available"] = _no_distributed
    if "define_import_structure" in names:
        names["define_import_structure"] = _cached_structure(names["define_import_structure"])


def _no_distributed() -> bool:
    """Return False: dynx runs in one process, so tensors are never distributed."""
    return False


def _cached_structure(define: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap transformers' `define_import_structure` to read its result from the cache folder while the files are unchanged."""

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        from dynx.runtime.profile_store import cache_folder

        folder = Path(module_path)
        folder = folder.parent if folder.suffix else folder
        if folder.name != "models":
            return define(module_path, prefix)
        file = cache_folder() / "transformers" / f"{_hash_of_listing(folder)}.json"
        found = _read_structure(file)
        if found is None:
            found = define(module_path)
            _write_structure(file, found)
        return {k: {f"{prefix}.{kk}" if prefix else kk: set(vv) for kk, vv in v.items()} for k, v in found.items()}

    return define_import_structure


def _hash_of_listing(folder: Path) -> str:
    """Hash a folder's subfolders and the times at which a file in each was last added, removed or replaced."""
    from dynx.runtime.hashing import hash_json

    with os.scandir(folder) as entries:
        facts = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)
    return hash_json([str(folder), folder.stat().st_mtime_ns, facts])


def _read_structure(file: Path) -> dict[frozenset[str], dict[str, set[str]]] | None:
    try:
        if file.stat().st_size > MAX_STRUCTURE_BYTES:
            return None
        rows = json.loads(file.read_text(encoding="utf-8"))
        return {frozenset(needs): {name: set(objects) for name, objects in files.items()} for needs, files in rows}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _write_structure(file: Path, structure: dict[frozenset[str], dict[str, set[str]]]) -> None:
    rows = [
        [sorted(needs), {name: sorted(objects) for name, objects in files.items()}]
        for needs, files in structure.items()
    ]
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(rows), encoding="utf-8")
        draft.replace(file)


def install() -> None:
    """Load less from now on; do nothing where it is turned off, or where torch's compiler or transformers is loaded already."""
    loaded = {"torch._dynamo", "transformers"} & sys.modules.keys()
    if loaded or not enabled() or any(isinstance(finder, LazyFinder) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, LazyFinder())


def enabled() -> bool:
    """Whether `DYNX_LAZY_IMPORTS` allows lazy imports and the installed libraries are among `TESTED_VERSIONS`."""
    return os.environ.get(VARIABLE, "") != "0" and all(_is_tested(library) for library in TESTED_VERSIONS)


def _is_tested(library: str) -> bool:
    """Whether the installed release of a library is in its range; True where it isn't installed."""
    try:
        version = metadata.version(library)
    except metadata.PackageNotFoundError:
        return True
    first, last = TESTED_VERSIONS[library]
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and first <= (int(numbers[1]), int(numbers[2])) <= last


@contextlib.contextmanager
def paused_gc() -> Iterator[None]:
    """Pause garbage collection: imports create a million objects that stay, and scanning them takes a tenth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def skipped_meta_fills() -> Any:
    """Return a context that skips filling tensors on the meta device, for building models before their weights are read.

    torch computes the result of fills, ranges and copies there with its compiler's code, most of what `install` defers. Fills
    have nothing to fill; ranges are small enough to have their values; copies to another device need a shape. The
    context does nothing where lazy imports are turned off.
    """
    if not enabled():
        return contextlib.nullcontext()
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    fills = {getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_")}
    fills |= {value for name, value in vars(init).items() if name.endswith("_") and callable(value)}

    class SkippedMetaFills(TorchFunctionMode):
        """Replaces the functions named above; all others run as they are."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = kwargs or {}
            if func in fills:
                filled = args[0] if args else kwargs.get("tensor")
                if isinstance(filled, torch.Tensor) and filled.is_meta:
                    return filled
            elif func is torch.arange:
                if "out" not in kwargs and torch.device(kwargs.get("device") or "cpu").type == "meta":
                    kwargs = {**kwargs, "device": "cpu"}
            elif func is torch.empty_like and len(args) == 1 and kwargs.keys() == {"device"} and args[0].is_meta:
                like = args[0]
                return torch.empty(like.shape, dtype=like.dtype, device=kwargs["device"])
            return func(*args, **kwargs)

    return SkippedMetaFills()
