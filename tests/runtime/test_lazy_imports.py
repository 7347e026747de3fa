"""Lazy imports: modules that load when one of their names is used, and models built without values."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.commands import environment, finish, spawn
from support.models import perturbed, tiny
from transformers import AutoModelForCausalLM
from transformers.utils import import_utils

from dynx.runtime import lazy_imports
from dynx.runtime.loading import libraries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.usefixtures("alone")

COMPILER = """
marked, kept_out = [], []
def mark(function):
    marked.append(function.__name__)
    return function
def disable(function=None, recursive=True, *, reason=None):
    def inner(*arguments):
        kept_out.append((function.__name__, reason))
        return function(*arguments)
    return inner
def solve(x):
    return x + 1
VERSION = 3
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package `lazy_package` whose code hasn't run, with a module in it."""
    (tmp_path / "lazy_package").mkdir()
    (tmp_path / "lazy_package" / "__init__.py").write_text(COMPILER, encoding="utf-8")
    (tmp_path / "lazy_package" / "part.py").write_text("from lazy_package import VERSION\n", encoding="utf-8")
    stand_ins = {
        "mark": lazy_imports._record_decorated,
        "disable": lazy_imports._disable_when_loaded,
        "solve": lazy_imports._call_on_use,
        "eval_frame": lazy_imports._attribute_holder,
    }
    monkeypatch.setitem(lazy_imports.LAZY, "lazy_package", stand_ins)
    monkeypatch.setattr(sys, "meta_path", [lazy_imports.LazyFinder(), *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    yield "lazy_package"
    for name in ("lazy_package", "lazy_package.part"):
        sys.modules.pop(name, None)


def deferred(module: Any) -> bool:
    return "VERSION" not in vars(module)


def test_decorators_are_recorded_until_the_module_loads(compiler: str) -> None:
    """Marks are applied on loading; a disabled function runs as it is before, and disabled after."""
    lazy_package = importlib.import_module(compiler)

    def one(x: int) -> int:
        return 2 * x

    other = lazy_package.disable(reason="why")(one)
    assert lazy_package.mark(one) is one
    assert (other(4), other.__name__) == (8, "one")
    assert not isinstance(one, lazy_package.eval_frame.OptimizedModule)
    assert not hasattr(lazy_package, "__nothing__")
    assert deferred(lazy_package)

    assert lazy_package.VERSION == 3
    assert lazy_package.marked == ["one"]
    assert (other(4), lazy_package.kept_out) == (8, [("one", "why")])
    assert sys.modules[compiler] is lazy_package


def test_calling_what_it_defines_loads_it(compiler: str) -> None:
    """A function that was imported from a lazy module does what the module's own does."""
    solve = importlib.import_module(compiler).solve

    assert deferred(sys.modules[compiler])
    assert solve(4) == 5
    assert sys.modules[compiler].solve(4) == 5
    assert sys.modules[compiler].solve is not solve


def test_importing_what_is_in_it_loads_it(compiler: str) -> None:
    """A module inside finds its package run, as it would without this."""
    lazy_package = importlib.import_module(compiler)
    part = importlib.import_module(f"{compiler}.part")

    assert (part.VERSION, deferred(lazy_package)) == (3, False)


def test_a_module_that_fails_on_loading_is_not_left_behind(compiler: str, tmp_path: Path) -> None:
    """The error is its own, and the next import tries again."""
    (tmp_path / "lazy_package" / "__init__.py").write_text("raise ImportError('no such thing')\n", encoding="utf-8")
    lazy_package = importlib.import_module(compiler)

    with pytest.raises(ImportError, match="no such thing"):
        _ = lazy_package.VERSION
    assert compiler not in sys.modules


REAL = """
import json, sys
from dynx.runtime.lazy_imports import install
install()
import torch, transformers.models.gemma2.modeling_gemma2, transformers.masking_utils as masks
from transformers.integrations.deepgemm import is_sm100
from transformers.loss.loss_for_object_detection import linear_sum_assignment
names = ("torch._dynamo.convert_frame", "scipy.optimize._optimize", "sympy", "torch.distributed.tensor")
before = [name in sys.modules for name in names]
held = masks.TransformGetItemToIndex
pairs = linear_sum_assignment([[4.0, 1.0], [2.0, 3.0]])[1].tolist()
compiled = torch.compile(lambda x: x.sin() + 1, backend="eager")
same = torch.equal(compiled(torch.ones(2)), torch.ones(2).sin() + 1)
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex as real
from torch.distributed.tensor import DTensor
mode = type(held()) is real
marks = masks.TransformGetItemToIndex is real, is_sm100._dynamo_marked_constant
print(json.dumps([before, pairs, same, mode, DTensor.__name__, *marks]))
"""


def test_what_was_put_off_is_there_when_it_is_used() -> None:
    """transformers' modules come without torch's compiler and scipy; both work from the first use on."""
    result = finish(spawn(code=REAL))

    assert json.loads(result.out) == [[False] * 4, [1, 0], True, True, "DTensor", True, True], result.err


def test_the_list_of_models_is_remembered_and_is_transformers_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From the cache folder come the same names from the same files, in order; a damaged file is made anew."""
    calls = []
    define = import_utils.define_import_structure

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return define(*arguments)

    folder = next(iter(importlib.import_module("transformers.models").__path__))
    whole, cached = define(folder, "models"), lazy_imports._cached_structure(counted)
    first, second = cached(folder, "models"), cached(f"{folder}/__init__.py", prefix="models")
    second[frozenset()]["more"] = {"More"}

    assert first == whole == cached(folder, "models")
    assert [list(files) for files in first.values()] == [list(files) for files in whole.values()]
    assert cached(f"{folder}/__init__.py") == define(folder)
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache" / "transformers").iterdir()
    kept.write_text('{"torn', encoding="utf-8")
    assert (cached(folder, "models"), len(calls)) == (whole, 2)
    assert cached(f"{folder}/llama/__init__.py") == define(f"{folder}/llama/__init__.py")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "opt", "bloom", "falcon", "mamba"])
def test_a_model_built_without_values_is_the_same_model(kind: str, tmp_path: Path) -> None:
    """Every parameter and buffer, kept in the file or not, and the logits are bit for bit those of transformers' own loading."""
    perturbed(tiny(kind)).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = libraries._from_pretrained(AutoModelForCausalLM, tmp_path).eval()
    ids = torch.arange(9).unsqueeze(0)

    for get in ("named_parameters", "named_buffers"):
        theirs = dict(getattr(plain, get)())
        found = dict(getattr(ours, get)())
        assert found.keys() == theirs.keys()
        assert all(torch.equal(found[name], theirs[name]) and not found[name].is_meta for name in theirs)
        assert all(found[name].dtype == theirs[name].dtype for name in theirs)
    assert torch.equal(ours(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_a_model_that_mixes_what_has_values_and_what_has_none_is_built_the_usual_way(tmp_path: Path) -> None:
    """What fails on tensors without values alone loads without this; any other error is the model's own, and comes once."""

    class Mixing:
        calls = 0

        @classmethod
        def from_pretrained(cls, folder: Path) -> torch.Tensor:
            cls.calls += 1
            with torch.device("meta"):
                return torch.arange(3) + torch.ones(3)

    class Broken:
        calls = 0

        @classmethod
        def from_pretrained(cls, folder: Path) -> None:
            cls.calls += 1
            raise RuntimeError("size mismatch")

    assert libraries._from_pretrained(Mixing, tmp_path).is_meta
    assert Mixing.calls == 2
    with pytest.raises(RuntimeError, match="size mismatch"):
        libraries._from_pretrained(Broken, tmp_path)
    assert Broken.calls == 1


def test_garbage_is_searched_for_again_after_importing() -> None:
    """As it was before, also after an error, and not where the caller had turned it off."""
    during = []
    with contextlib.suppress(ValueError), lazy_imports.paused_gc():
        during.append(gc.isenabled())
        raise ValueError("whatever")
    assert during == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with lazy_imports.paused_gc():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()


@pytest.mark.parametrize(
    ("library", "version", "on"),
    [
        ("torch", "2.13.1+cpu", True),
        ("torch", "2.7.1", False),
        ("torch", "2.99.0", False),
        ("transformers", "5.24.0", True),
        ("transformers", "6.0.0.dev0", False),
        ("transformers", "unknown", False),
    ],
)
def test_untested_versions_load_everything(
    library: str, version: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The internals that are replaced may have moved there, so nothing is replaced."""
    versions = {"torch": "2.13.0", "transformers": "5.24.0", library: version}
    monkeypatch.setattr(lazy_imports.metadata, "version", versions.__getitem__)

    assert lazy_imports.enabled() is on
    assert isinstance(lazy_imports.skipped_meta_fills(), contextlib.nullcontext) is not on


OFF = """
import sys
from dynx.runtime import lazy_imports
lazy_imports.install()
import transformers.models.gemma2.modeling_gemma2
print(any(isinstance(f, lazy_imports.LazyFinder) for f in sys.meta_path), "torch._dynamo.convert_frame" in sys.modules)
"""


def test_the_variable_turns_it_off() -> None:
    """With DYNX_LAZY_IMPORTS=0 imports go their usual way."""
    result = finish(spawn(code=OFF, env=environment(DYNX_LAZY_IMPORTS="0")))

    assert result.out.split() == ["False", "True"], result.err


CANARY = """
import importlib, inspect, json, sys
from dynx.runtime import lazy_imports as lazy
names = [name for name in lazy.LAZY if not name.startswith(("scipy.", "diffusers."))]
plain = {name: importlib.import_module(name) for name in names}
import torch, transformers.utils.import_utils as utils
from torch.nn import init
dynamo = plain["torch._dynamo"]
faults = [f"{name}.{inner}" for name in names for inner in lazy.LAZY[name] if not hasattr(plain[name], inner)]
patched = "is_torch_distributed_available", "define_import_structure"
faults += [n for n in patched if not callable(getattr(utils, n, None))]
faults += [n for n in ("normal_", "uniform_", "fill_", "zero_") if not hasattr(torch.Tensor, n)]
def function(): return 1
if dynamo.allow_in_graph(function) is not function: faults.append("allow_in_graph wraps")
if dynamo.assume_constant_result(function) is not function: faults.append("assume_constant_result wraps")
def parameters(f): return list(inspect.signature(f).parameters)
if parameters(dynamo.disable)[:2] != ["fn", "recursive"]: faults.append("disable's parameters")
if not isinstance(dynamo.eval_frame.OptimizedModule, type): faults.append("OptimizedModule")
if parameters(utils.define_import_structure) != ["module_path", "prefix"]: faults.append("define_import_structure's parameters")
print(json.dumps(faults))
"""


def test_the_replaced_internals_are_where_they_were() -> None:
    """A canary: every name of torch and transformers that is replaced exists without us, and takes and returns what we assume."""
    result = finish(spawn(code=CANARY, env=environment(DYNX_LAZY_IMPORTS="0")))

    assert json.loads(result.out) == [], result.err
