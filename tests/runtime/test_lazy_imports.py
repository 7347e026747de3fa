"""Loading less: modules that doze until something is asked of them, and models built without values."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.commands import finish, spawn
from support.models import perturbed, tiny
from transformers import AutoModelForCausalLM
from transformers.utils import import_utils

from dynx.runtime import lazy_imports, loading

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
    """A package `dozy` whose code hasn't run, with a module in it."""
    (tmp_path / "dozy").mkdir()
    (tmp_path / "dozy" / "__init__.py").write_text(COMPILER, encoding="utf-8")
    (tmp_path / "dozy" / "part.py").write_text("from dozy import VERSION\n", encoding="utf-8")
    stand_ins = {
        "mark": lazy_imports._marking,
        "disable": lazy_imports._disabling,
        "solve": lazy_imports._calling,
        "eval_frame": lazy_imports._containing,
    }
    monkeypatch.setitem(lazy_imports.LAZY, "dozy", stand_ins)
    monkeypatch.setattr(sys, "meta_path", [lazy_imports.Lean(), *sys.meta_path])
    monkeypatch.syspath_prepend(tmp_path)
    yield "dozy"
    for name in ("dozy", "dozy.part"):
        sys.modules.pop(name, None)


def asleep(module: Any) -> bool:
    return "VERSION" not in vars(module)


def test_decorators_are_remembered_until_the_module_wakes(compiler: str) -> None:
    """A mark is given later, a disabled function runs as it is until there is something to disable, and then is disabled."""
    dozy = importlib.import_module(compiler)

    def one(x: int) -> int:
        return 2 * x

    other = dozy.disable(reason="why")(one)
    assert dozy.mark(one) is one
    assert (other(4), other.__name__) == (8, "one")
    assert not isinstance(one, dozy.eval_frame.OptimizedModule)
    assert not hasattr(dozy, "__nothing__")
    assert asleep(dozy)

    assert dozy.VERSION == 3
    assert dozy.marked == ["one"]
    assert (other(4), dozy.kept_out) == (8, [("one", "why")])
    assert sys.modules[compiler] is dozy


def test_calling_what_it_defines_wakes_it(compiler: str) -> None:
    """A function that was imported from a dozing module does what the module's own does."""
    solve = importlib.import_module(compiler).solve

    assert asleep(sys.modules[compiler])
    assert solve(4) == 5
    assert sys.modules[compiler].solve(4) == 5
    assert sys.modules[compiler].solve is not solve


def test_importing_what_is_in_it_wakes_it(compiler: str) -> None:
    """A module inside finds its package run, as it would without this."""
    dozy = importlib.import_module(compiler)
    part = importlib.import_module(f"{compiler}.part")

    assert (part.VERSION, asleep(dozy)) == (3, False)


def test_a_module_that_fails_when_woken_is_not_left_behind(compiler: str, tmp_path: Path) -> None:
    """The error is its own, and the next import tries again."""
    (tmp_path / "dozy" / "__init__.py").write_text("raise ImportError('no such thing')\n", encoding="utf-8")
    dozy = importlib.import_module(compiler)

    with pytest.raises(ImportError, match="no such thing"):
        _ = dozy.VERSION
    assert compiler not in sys.modules


REAL = """
import json, sys
from dynx.runtime.lazy_imports import lean
lean()
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
    whole, remembering = define(folder, "models"), lazy_imports._remembering(counted)
    first, second = remembering(folder, "models"), remembering(f"{folder}/__init__.py", prefix="models")
    second[frozenset()]["more"] = {"More"}

    assert first == whole == remembering(folder, "models")
    assert [list(files) for files in first.values()] == [list(files) for files in whole.values()]
    assert remembering(f"{folder}/__init__.py") == define(folder)
    assert len(calls) == 1
    (kept,) = (tmp_path / "cache" / "transformers").iterdir()
    kept.write_text('{"torn', encoding="utf-8")
    assert (remembering(folder, "models"), len(calls)) == (whole, 2)
    assert remembering(f"{folder}/llama/__init__.py") == define(f"{folder}/llama/__init__.py")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma3_text", "opt", "bloom", "falcon", "mamba"])
def test_a_model_built_without_values_is_the_same_model(kind: str, tmp_path: Path) -> None:
    """Every parameter and buffer, kept in the file or not, and the logits are bit for bit those of transformers' own loading."""
    perturbed(tiny(kind)).save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    ours = loading._from_pretrained(AutoModelForCausalLM, tmp_path).eval()
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

    assert loading._from_pretrained(Mixing, tmp_path).is_meta
    assert Mixing.calls == 2
    with pytest.raises(RuntimeError, match="size mismatch"):
        loading._from_pretrained(Broken, tmp_path)
    assert Broken.calls == 1


def test_garbage_is_searched_for_again_after_importing() -> None:
    """As it was before, also after an error, and not where the caller had turned it off."""
    during = []
    with contextlib.suppress(ValueError), lazy_imports.uncollected():
        during.append(gc.isenabled())
        raise ValueError("whatever")
    assert during == [False]
    assert gc.isenabled()
    gc.disable()
    try:
        with lazy_imports.uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
        gc.unfreeze()
