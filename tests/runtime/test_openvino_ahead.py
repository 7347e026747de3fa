"""Graphs that are compiled in a thread are those that would be compiled when they are asked for."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from dynx.errors import UnsupportedModelError
from dynx.runtime.backends.network import NetworkBackend
from dynx.runtime.backends.openvino import ahead

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("openvino")


class Small(nn.Module):
    """A layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it."""
        return self.layer(x).relu()


def backend(module: Any, cache: Path) -> NetworkBackend:
    return NetworkBackend(module, "openvino", dtype="float32", threads=1, cache=cache)


def test_what_was_begun_is_used_once_and_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's graph is taken by who prepares for that call; a second one compiles its own."""
    module, x = Small(), torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    first = backend(module, tmp_path)
    first.prepare((x,), {})
    assert len(first.kept) == 1
    compiled: list[str] = []
    own = ahead._compiled

    def counted(file: Path, *others: Any) -> Any:
        compiled.append(file.parent.name)
        return own(file, *others)

    monkeypatch.setattr(ahead, "_compiled", counted)
    folders = [(tmp_path / name, "float32") for name in (*first.kept, "missing")]
    assert ahead.begin(folders, 1) == 1
    for taken in (1, 2):
        again = backend(module, tmp_path)
        again.prepare((x,), {})
        assert compiled == first.kept * taken
        assert torch.allclose(again(module, (x,), {}), module(x), atol=1e-5)
        assert again.made == again.passed == 0
    assert ahead.begun() == []


def test_a_graph_that_does_not_compile_is_made_anew(tmp_path: Path) -> None:
    """A damaged file in the cache costs a conversion, in the thread as without it."""
    module, x = Small(), torch.ones(2, 4)
    first = backend(module, tmp_path)
    first.prepare((x,), {})
    folder = tmp_path / first.kept[0]
    (folder / "model.xml").write_text("<net/>")
    assert ahead.begin([(folder, "float32")], 1) == 1
    again = backend(module, tmp_path)
    again.prepare((x,), {})
    assert again.made == 1
    shutil.rmtree(folder)
    assert ahead.begin([(folder, "float32")], 1) == 0


def test_errors_of_the_thread_are_those_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are raised where the graph is asked for."""
    (tmp_path / "facts.json").write_text('{"way": {}}')

    def fails(*_: Any) -> Any:
        raise UnsupportedModelError("it is shy")

    monkeypatch.setattr(ahead, "_compiled", fails)
    ahead.begin([(tmp_path, "float32")], 1)
    with pytest.raises(UnsupportedModelError, match="it is shy"):
        ahead.request_of(tmp_path / "model.xml", "float32", 1, {})
