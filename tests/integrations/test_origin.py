"""Whether a loaded model still is what lies in its folder is seen weight by weight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file
from support.models import tiny
from torch import nn

from dynx.integrations import origin

if TYPE_CHECKING:
    from pathlib import Path


def test_equal_changed_and_missing_weights(tmp_path: Path) -> None:
    """None for the same, else which weight and where."""
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    assert origin.difference(module, tmp_path) is None
    assert origin.difference(module.to(torch.bfloat16), tmp_path) is None  # compared in the module's own precision

    before = module[1].bias.detach().clone()
    with torch.no_grad():
        module[1].bias.add_(1)
    assert origin.difference(module, tmp_path) == f"its weights aren't those in {tmp_path} any more (1.bias)"
    module.add_module("2", nn.Linear(1, 1))
    with torch.no_grad():
        module[1].bias.copy_(before)
    assert "2.weight isn't there" in str(origin.difference(module, tmp_path))


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    """A language model whose head is its embedding is what its folder holds."""
    model = tiny("gpt2")
    model.save_pretrained(tmp_path)
    assert origin.difference(model, tmp_path) is None


def test_one_of_several_precisions_is_enough(tmp_path: Path) -> None:
    """Folders of pipelines hold the same part in float32 and in half."""
    module = nn.Linear(3, 3)
    whole = {name: value.clone() for name, value in module.state_dict().items()}
    save_file(whole, tmp_path / "a.safetensors")
    save_file({name: value.half() for name, value in whole.items()}, tmp_path / "a.fp16.safetensors")
    assert origin.difference(module, tmp_path) is None
    assert origin.difference(module.half(), tmp_path) is None


def test_other_names_are_compared_with_a_model_loaded_again(tmp_path: Path) -> None:
    """What a library renames while loading isn't missing."""
    module = nn.Linear(2, 2)
    save_file({f"old.{name}": value for name, value in module.state_dict().items()}, tmp_path / "model.safetensors")
    again = nn.Linear(2, 2)
    again.load_state_dict(module.state_dict())
    assert origin.difference(module, tmp_path, lambda: again) is None
    with torch.no_grad():
        again.bias.add_(1)
    assert "bias" in str(origin.difference(module, tmp_path, lambda: again))
    assert "can't be compared" in str(origin.difference(module, tmp_path, lambda: 1 / 0))  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("change", ["in place", "replaced", "data", "part"])
def test_a_state_holds_until_something_changes(change: str) -> None:
    """Values written in place, a new parameter, another tensor under the same one, another module."""
    module = nn.Linear(2, 2)
    whole = nn.Sequential(module, nn.ReLU())
    state = origin.State(whole)
    whole(torch.zeros(1, 2))
    assert state.holds
    if change == "in place":
        with torch.no_grad():
            module.weight.mul_(2)
    elif change == "replaced":
        module.weight = nn.Parameter(module.weight.detach().clone())
    elif change == "part":
        whole[1] = nn.ReLU()
    else:
        module.weight.data = module.weight.data.clone()
    assert not state.holds
