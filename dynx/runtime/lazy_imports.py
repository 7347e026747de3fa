"""Loading torch and transformers without the parts that only training and compiling use.

Importing any model of transformers imports torch's compiler, its distributed tensors, sympy and scipy too, which takes longer
than torch itself; running a model calls none of them. After `lean()` those modules run their code when something is first asked
of them, and not before. Nothing is left out: what decorates functions is a stand-in that remembers them until then.

Knows names inside torch and transformers, nothing of models. Where a name isn't there, importing goes its usual way. For
processes that are dynx's own; a program that imports dynx decides by itself what it loads.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import json
import os
import sys
import threading
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    StandIn = Callable[["Dozing", str], Any]

STRUCTURE_BYTES = 8 << 20
"""A remembered list of transformers' models beyond this is no such list."""


class Dozing:
    """A module in place whose code hasn't run; `stand_ins` answer for some of its names, any other name wakes it."""

    def __init__(self, module: ModuleType, loader: Loader, stand_ins: dict[str, StandIn]) -> None:
        self.name, self.ready = module.__name__, False
        self.marks: list[tuple[str, Any]] = []
        self._module, self._loader, self._lock = module, loader, threading.RLock()
        self._made = {name: make(self, name) for name, make in stand_ins.items()}
        self._woken = False
        vars(module).update(self._made, __getattr__=self._missing)

    def _missing(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):  # what looks through all modules asks for these
            raise AttributeError(f"module {self._module.__name__!r} has no attribute {name!r}")
        return getattr(self.wake(), name)

    def wake(self) -> ModuleType:
        """Run the module's code, give the marks, and put what is real where stand-ins were."""
        with self._lock:
            if self._woken:
                return self._module
            self._woken = True
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
            for name, function in self.marks:
                getattr(module, name)(function)
            self.ready = True
            self._replace()
            return module

    def _replace(self) -> None:
        real = {id(stand_in): getattr(self._module, name, None) for name, stand_in in self._made.items()}
        for holder in list(sys.modules.values()):
            if getattr(holder, "__name__", "").startswith(("transformers.", "diffusers.")):
                for name, value in list(vars(holder).items()):
                    if id(value) in real:
                        setattr(holder, name, real[id(value)])


def _calling(dozing: Dozing, name: str) -> Callable[..., Any]:
    """For what is called late or never: the first call wakes the module."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(dozing.wake(), name)(*args, **kwargs)

    return call


def _marking(dozing: Dozing, name: str) -> Callable[..., Any]:
    """For a decorator that returns what it is given, noted for the compiler; there is none until the module wakes."""

    def mark(function: Any) -> Any:
        dozing.marks.append((name, function))
        return function

    return mark


def _disabling(dozing: Dozing, name: str) -> Callable[..., Any]:
    """For `disable`, which keeps the compiler out of a function: nothing compiles until the module wakes."""

    def disable(function: Any = None, recursive: bool = True, **options: Any) -> Any:
        if function is None:
            return functools.partial(disable, recursive=recursive, **options)
        if isinstance(function, type) or not hasattr(function, "__name__"):
            return getattr(dozing.wake(), name)(function, recursive, **options)
        real: Callable[..., Any] | None = None

        @functools.wraps(function)
        def kept_out(*args: Any, **kwargs: Any) -> Any:
            nonlocal real
            if not dozing.ready:
                return function(*args, **kwargs)
            if real is None:
                real = getattr(dozing.wake(), name)(function, recursive, **options)
            return real(*args, **kwargs)

        return kept_out

    return disable


def _containing(dozing: Dozing, name: str) -> Any:
    """For `eval_frame`, in which one looks up what compiled modules are: nothing is one until the module wakes."""

    class Inner:
        """The inner module as far as it is known."""

        class OptimizedModule:
            """Has no instances."""

        def __getattr__(self, other: str) -> Any:
            return getattr(getattr(dozing.wake(), name), other)

    return Inner()


LAZY: dict[str, dict[str, StandIn]] = {
    "torch._dynamo": {
        "allow_in_graph": _marking,
        "assume_constant_result": _marking,
        "disable": _disabling,
        "eval_frame": _containing,
    },
    "torch._dynamo._trace_wrapped_higher_order_op": {"TransformGetItemToIndex": _calling},
    "scipy.optimize": {"linear_sum_assignment": _calling},
    "scipy.integrate": {},
    "scipy.stats": {},
    "diffusers.models.autoencoders": {},
    "diffusers.models.transformers": {},
}
"""What the libraries' modules take from where when they are imported, and do nothing with before they train or compile."""

SHELVES = frozenset({"diffusers.models.autoencoders", "diffusers.models.transformers"})
"""Packages that only gather what their modules define: one of these needs none of the others."""


class Lean(MetaPathFinder):
    """Finds the modules of LAZY, and transformers' own look at what there is."""

    def __init__(self) -> None:
        self._dozing: dict[str, Dozing] = {}

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See the base class."""
        parent = self._dozing.get(name.rpartition(".")[0])
        if name not in LAZY:
            if parent is not None:
                if parent.name not in SHELVES:
                    parent.wake()
                return None
            if name != "transformers.utils.import_utils":
                return None
        elif parent is not None and parent.ready:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._doze if name in LAZY else _look_less)
        return spec

    def _doze(self, module: ModuleType, loader: Loader) -> None:
        self._dozing[module.__name__] = Dozing(module, loader, LAZY[module.__name__])


class _Loader(Loader):
    """Another loader, but for how a module is run."""

    def __init__(self, inner: Loader, run: Callable[[ModuleType, Loader], None]) -> None:
        self._inner, self._run = inner, run

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See the base class."""
        return self._inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """See the base class."""
        self._run(module, self._inner)

    def __getattr__(self, name: str) -> Any:  # where its source is
        return getattr(self._inner, name)


def _look_less(module: ModuleType, loader: Loader) -> None:
    """Run transformers.utils.import_utils; then neither read all models' sources twice a start, nor shard anything."""
    loader.exec_module(module)
    names = vars(module)
    if "is_torch_distributed_available" in names and "WORLD_SIZE" not in os.environ:
        names["is_torch_distributed_available"] = _undistributed
    if "define_import_structure" in names:
        names["define_import_structure"] = _remembering(names["define_import_structure"])


def _undistributed() -> bool:
    """Whether tensors may be spread over processes: dynx runs in one."""
    return False


def _remembering(define: Callable[..., Any]) -> Callable[..., Any]:
    """transformers' list of what each file of its models defines, from the cache folder while those files are the same."""

    def define_import_structure(module_path: Any, prefix: str | None = None) -> Any:
        from dynx.runtime.profile_store import cache_folder

        folder = Path(module_path)
        folder = folder.parent if folder.suffix else folder
        if folder.name != "models":
            return define(module_path, prefix)
        file = cache_folder() / "transformers" / f"{_listing(folder)}.json"
        found = _read_structure(file)
        if found is None:
            found = define(module_path)
            _write_structure(file, found)
        return {k: {f"{prefix}.{kk}" if prefix else kk: set(vv) for kk, vv in v.items()} for k, v in found.items()}

    return define_import_structure


def _listing(folder: Path) -> str:
    """A hash of a folder's subfolders and when a file in each was last added, removed or replaced."""
    from dynx.runtime.hashing import hash_json

    with os.scandir(folder) as entries:
        facts = sorted((entry.name, entry.stat().st_mtime_ns) for entry in entries)
    return hash_json([str(folder), folder.stat().st_mtime_ns, facts])


def _read_structure(file: Path) -> dict[frozenset[str], dict[str, set[str]]] | None:
    try:
        if file.stat().st_size > STRUCTURE_BYTES:
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


def lean() -> None:
    """From now on load less; nothing where torch's compiler or transformers is loaded already."""
    if {"torch._dynamo", "transformers"} & sys.modules.keys() or any(isinstance(one, Lean) for one in sys.meta_path):
        return
    sys.meta_path.insert(0, Lean())


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No search for garbage: imports make a million objects that stay, and looking through them is a tenth of the time."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def unfilled() -> Any:
    """A context for building models on the meta device, where tensors have no values until the weights are there.

    torch works out by its compiler's code what fills, ranges and copies give there, which is most of what `lean` puts off. Fills
    have nothing to fill; ranges are small enough to have their values; copies elsewhere need a shape.
    """
    import torch
    from torch.nn import init
    from torch.overrides import TorchFunctionMode

    fills = {getattr(torch.Tensor, name) for name in ("normal_", "uniform_", "fill_", "zero_")}
    fills |= {value for name, value in vars(init).items() if name.endswith("_") and callable(value)}

    class Unfilled(TorchFunctionMode):
        """See above."""

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

    return Unfilled()
