"""Runs one module on another backend: calls of fixed shapes are compiled by PyTorch or converted for OpenVINO, and cached.

A call is known by its form: the shapes and types of its tensors, and the values of all else. Forms that nobody has prepared
are left to the module as it is. What is made is compared with the module before it is kept or used, on the arguments that it
was made from; a file's name contains all that it depends on, so a file that is found is used unchecked. It knows nothing of what
a module computes; outputs come back as the module arranges them.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import platform
import secrets
import shutil
import subprocess
import sys
import tempfile
import warnings
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends import compile_cache
from dynx.runtime.backends.compile_graph import unlogged
from dynx.runtime.backends.openvino import ahead
from dynx.runtime.backends.registry import COMPILED, OPENVINO, TITLES, TORCH
from dynx.runtime.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Function = Callable[[list[Tensor]], list[Tensor]]

FORMAT_VERSION = 1
"""Version of the cached files; raise it when they or their arguments change."""

PLAIN_TYPES = type(None), bool, int, float, str
"""Arguments beside tensors that mean the same in every process."""

MAX_RELATIVE_ERROR = {"float32": 1e-3, "bfloat16": 0.25, "float16": 0.25}
"""Largest difference from the module's output, relative to its norm; only a wrong result exceeds it.

Whether rounding to 16 bits is harmless (it took 0.01 to 0.025 from trained networks, 0.11 from a random one) is for the task to
judge, by its results.
"""

TRIAL_SCRIPT = """
import json, sys
import openvino as ov
core = ov.Core()
core.compile_model(core.read_model(sys.argv[1]), "CPU", json.loads(sys.argv[2])).create_infer_request()
"""
"""OpenVINO 2026.4 was seen to crash while it compiles some networks with attention in float32, and not without its "snippets"."""

OPENVINO_SETTINGS: tuple[dict[str, Any], ...] = ({}, {"SNIPPETS_MODE": "DISABLE"})

TRIAL_TIMEOUT_SECONDS = 900.0
"""Time limit of one trial compilation, in seconds."""


@dataclass(frozen=True)
class Form:
    """What calls that one compiled function can compute have in common."""

    tree: Any  # how the arguments are nested
    leaves: tuple[Any, ...]  # shape and type of a tensor, or the value

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Form, list[Tensor]]:
        """Describe a call; return its form and its tensors. Raises UnsupportedModelError for arguments of other kinds."""
        leaves, tree = pytree.tree_flatten((args, kwargs))
        seen: list[Any] = []
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                seen.append((tuple(leaf.shape), leaf.dtype))
            elif isinstance(leaf, PLAIN_TYPES):
                seen.append(leaf)
            else:
                raise UnsupportedModelError(f"it is called with a {type(leaf).__name__}")
        return cls(tree, tuple(seen)), [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def arguments(self, tensors: list[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rebuild the arguments of a call of this form from its tensors."""
        rest = iter(tensors)
        leaves = [next(rest) if isinstance(leaf, tuple) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(leaves, self.tree)
        return args, kwargs


class Flat(nn.Module):
    """A module as a function from tensors to tensors, of one form of call, computing in `dtype`."""

    def __init__(self, module: nn.Module, form: Form, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.form, self.dtype = form, dtype
        self.tree: Any = None
        """How the outputs are nested, once it has run."""

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """In the order of the form. Numbers and rows of numbers, such as times, keep their precision."""
        args, kwargs = self.form.arguments([_cast(tensor, self.dtype) for tensor in tensors])
        outputs, self.tree = pytree.tree_flatten(self.module(*args, **kwargs))
        if not outputs or not all(isinstance(output, Tensor) for output in outputs):
            raise UnsupportedModelError("it answers with more than tensors")
        kind = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), self.dtype)
        return tuple(output.to(kind) if output.is_floating_point() else output for output in outputs)


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dim() > 1 else tensor


class NetworkBackend:
    """Computes the calls of one module on the CPU by `backend`, in the precision `dtype`."""

    def __init__(self, module: nn.Module, backend: str, *, dtype: str, threads: int, cache: Path | None) -> None:
        """Store compiled functions in the folder `cache`, which is for this module alone."""
        self.module, self.backend, self.dtype = module, backend, dtype
        self.made = 0
        """Functions that this process had to compile or convert; the others came from the cache."""
        self.passed = 0
        """Calls that the unmodified module computed."""
        self._threads, self._cache = threads, cache
        self._known: dict[Form, tuple[Function, Any]] = {}
        self._lowered: nn.Module | None = None

    def __str__(self) -> str:
        return f"{TITLES[self.backend]}, {self.dtype}"

    @property
    def own_threads(self) -> bool:
        """Whether another runtime's threads compute, beside which PyTorch's would spin."""
        return self.backend == OPENVINO

    @torch.no_grad()
    def __call__(self, inner: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Compute a call; `inner`, the unmodified module, computes those of forms that aren't prepared."""
        try:
            form, tensors = Form.of(args, kwargs)
            function, tree = self._known[form]
        except (UnsupportedModelError, KeyError):
            self.passed += 1
            return inner(*args, **kwargs)
        return pytree.tree_unflatten(function(tensors), tree)

    @property
    def kept(self) -> list[str]:
        """Names of the folders in the cache that hold what was prepared."""
        return [] if self._cache is None else [self._name(form) for form in self._known]

    @torch.no_grad()
    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Make ready for calls like this one. Raises UnsupportedModelError with the reason."""
        form, tensors = Form.of(args, kwargs)
        if form in self._known:
            return
        kind = type(self.module).__name__
        tensors = [tensor.detach().clone() for tensor in tensors]
        try:
            with unlogged(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._known[form] = self._function(form, tensors)
        except UnsupportedModelError as e:
            raise UnsupportedModelError(f"{kind} isn't computed by {TITLES[self.backend]}: {e}") from e
        except Exception as e:
            if is_out_of_memory(e):
                raise
            said = (str(e).strip() or type(e).__name__).splitlines()[0][:160]
            raise UnsupportedModelError(f"{kind} can't be prepared for {TITLES[self.backend]} ({said})") from e

    def _function(self, form: Form, tensors: list[Tensor]) -> tuple[Function, Any]:
        """Return the function that computes calls of a form, and the structure of its outputs."""
        path = None if self._cache is None else self._cache / self._name(form)
        whole = Flat(self.module, form, torch.float32)
        if path is not None and (kept := self._kept(path, form)) is not None:
            return kept
        want = whole(*tensors)
        spec = whole.tree
        if self.backend == OPENVINO:
            found = self._converted(path, whole, tensors)
        else:
            flat = Flat(self._lower(), form, getattr(torch, self.dtype))
            found = self._compiled(path, flat, tensors) if self.backend == COMPILED else _eager(flat)
        if fault := _difference(found(tensors), want, MAX_RELATIVE_ERROR[self.dtype]):
            if path is not None:
                _remove(path)
            raise UnsupportedModelError(fault)
        return found, spec

    def _kept(self, path: Path, form: Form) -> tuple[Function, Any] | None:
        """Load what an earlier process compiled or converted; None where there is nothing usable."""
        if self.backend == TORCH:
            return None
        try:
            facts = json.loads((path / "facts.json").read_text(encoding="utf-8"))
            spec = pytree.treespec_loads(facts["outputs"])
            if self.backend == OPENVINO:
                return _Converted(path / "model.xml", self.dtype, self._threads, facts["way"]), spec
            from torch._inductor.standalone_compile import AOTCompiledArtifact

            flat = Flat(self._lower(), form, getattr(torch, self.dtype))
            with compile_cache.reuse_trials(path.parent):
                return _with_state(AOTCompiledArtifact.load(path=str(path / "code.bin")), flat), spec
        except Exception:  # noqa: BLE001 - missing, torn, or another version's: made anew
            return None

    def _name(self, form: Form) -> str:
        """Of a folder: of all that its content depends on beside the module."""
        library = metadata.version("openvino") if self.backend == OPENVINO else torch.__version__
        facts = (
            FORMAT_VERSION,
            self.backend,
            library,
            _version("diffusers"),
            self.dtype,
            type(self.module).__name__,
            platform.machine(),
            torch.backends.cpu.get_cpu_capability(),
            self._threads,
            repr(form.tree),
            repr(form.leaves),
        )
        return f"{self.backend}-{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}"

    def _lower(self) -> nn.Module:
        """Return a copy of the module in the precision `dtype`, in the channels-last layout of CPU kernels."""
        if self._lowered is None:
            lowered: Any = copy.deepcopy(self.module).to(getattr(torch, self.dtype))
            self._lowered = lowered.to(memory_format=torch.channels_last).eval()
        return self._lowered

    def _settings(self, way: dict[str, Any]) -> dict[str, Any]:
        """For OpenVINO's compiler."""
        return ahead.settings(self.dtype, self._threads, way)

    def _converted(self, path: Path | None, whole: Flat, tensors: list[Tensor]) -> Function:
        """On OpenVINO, from a file in any case: its trial takes place in a process of its own."""
        import openvino as ov

        graph = ov.convert_model(torch.export.export(whole, tuple(tensors)))
        if len(graph.inputs) != len(tensors):
            raise UnsupportedModelError("some of its arguments change nothing, which can't be told apart there")
        graph.reshape({port: list(tensor.shape) for port, tensor in zip(graph.inputs, tensors, strict=True)})
        self.made += 1
        with _draft(path) as draft:
            ov.save_model(graph, draft / "model.xml", compress_to_fp16=False)
            way = self._way(draft / "model.xml")
            facts = {"way": way, "outputs": pytree.treespec_dumps(whole.tree)}
            found = _Converted(draft / "model.xml", self.dtype, self._threads, way)
            (draft / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        return found

    def _way(self, file: Path) -> dict[str, Any]:
        """Return the first settings under which OpenVINO compiles the file without crashing."""
        said = ""
        for way in OPENVINO_SETTINGS:
            words = [sys.executable, "-c", TRIAL_SCRIPT, str(file), json.dumps(self._settings(way))]
            ended = subprocess.run(words, capture_output=True, timeout=TRIAL_TIMEOUT_SECONDS, check=False)  # noqa: S603
            if ended.returncode == 0:
                return way
            lines = ended.stderr.decode(errors="replace").strip().splitlines()
            said = lines[-1][:160] if ended.returncode > 0 and lines else f"its compiler ended by {-ended.returncode}"
        raise UnsupportedModelError(said)

    def _compiled(self, path: Path | None, flat: Flat, tensors: list[Tensor]) -> Function:
        """By PyTorch; the code is kept, the weights are not in it."""
        from torch._inductor import standalone_compile as untyped
        from torch._subclasses.fake_tensor import FakeTensorMode
        from torch.fx.experimental.proxy_tensor import make_fx

        names, state = _state(flat)
        count = len(tensors)

        def call(*inputs: Tensor) -> tuple[Tensor, ...]:
            made: tuple[Tensor, ...] = torch.func.functional_call(
                flat, dict(zip(names, inputs[count:], strict=True)), inputs[:count]
            )
            return made

        compiler: Any = untyped
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        example = [mode.from_tensor(tensor) for tensor in (*tensors, *state)]
        with mode:
            graph = make_fx(call, tracing_mode="real")(*example)
        with compile_cache.reuse_trials(None if path is None else path.parent):
            made = compiler(graph, example, dynamic_shapes="from_graph", aot=True)
        self.made += 1
        if path is not None:
            with contextlib.suppress(OSError), _draft(path) as draft:
                made.save(path=str(draft / "code.bin"))
                facts = {"way": {}, "outputs": pytree.treespec_dumps(flat.tree)}
                (draft / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        return _with_state(made, flat)


class _Converted:
    """A file of OpenVINO's, compiled."""

    def __init__(self, file: Path, precision: str, threads: int, way: dict[str, Any]) -> None:
        self._request = ahead.request_of(file, precision, threads, way)

    def __call__(self, tensors: list[Tensor]) -> list[Tensor]:
        """Run the network; outputs are copies that outlive the next call."""
        found = self._request.infer([tensor.contiguous().numpy() for tensor in tensors], share_inputs=True)
        return [torch.from_numpy(found[i]) for i in range(len(found))]


def _eager(flat: Flat) -> Function:
    return lambda tensors: list(flat(*tensors))


def _state(flat: Flat) -> tuple[list[str], list[Tensor]]:
    """Parameters and buffers by name, in order."""
    named = {**dict(flat.named_parameters()), **dict(flat.named_buffers())}
    return list(named), [tensor.detach() for tensor in named.values()]


def _with_state(code: Callable[..., Any], flat: Flat) -> Function:
    """Compiled code with the weights that it takes."""
    _, state = _state(flat)
    return lambda tensors: list(code(*tensors, *state))


def _difference(found: list[Tensor], want: tuple[Tensor, ...], tolerance: float) -> str | None:
    """Describe how outputs differ beyond rounding; None where they don't."""
    if [tuple(t.shape) for t in found] != [tuple(t.shape) for t in want]:
        return "it answers in another shape"
    for ours, theirs in zip(found, want, strict=True):
        gap = float((ours.float() - theirs.float()).norm()) / max(float(theirs.float().norm()), 1e-12)
        if not gap <= tolerance:  # also catches NaN
            return f"it answers otherwise (by {gap:.2g} of the norm)"
    return None


@contextlib.contextmanager
def _draft(path: Path | None) -> Iterator[Path]:
    """Yield a folder that is renamed to `path` when it is complete; without a writable path, one that is deleted."""
    if path is not None:
        draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            draft.mkdir(parents=True)
        except OSError:
            path = None
    if path is None:
        draft = Path(tempfile.mkdtemp(prefix="dynx-"))
    try:
        yield draft
        if path is not None:
            with contextlib.suppress(OSError):
                shutil.rmtree(path, ignore_errors=True)
                draft.rename(path)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _remove(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
