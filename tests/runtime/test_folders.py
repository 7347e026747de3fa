"""What lies under a folder, through links and round no loop."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from support import pipelines

from dynx.errors import ModelError
from dynx.runtime.folders import MAX_NESTED_LINKS, walk
from dynx.runtime.hashing import model_hash

if TYPE_CHECKING:
    from pathlib import Path


def found(folder: Path) -> list[str]:
    return sorted((inside / name).as_posix() for inside, names in walk(folder) for name in names)


def plant(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_links_are_followed(tmp_path: Path) -> None:
    """To files, to folders, and to folders that hold links; a broken one is a file that can't be opened."""
    plant(tmp_path / "store" / "deep" / "a")
    plant(tmp_path / "model" / "b")
    (tmp_path / "model" / "c").symlink_to(tmp_path / "model" / "b")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "again").symlink_to(tmp_path / "store")
    (tmp_path / "model" / "linked").symlink_to(tmp_path / "more")
    (tmp_path / "model" / "broken").symlink_to(tmp_path / "nothing")
    (tmp_path / "model" / "itself").symlink_to("itself")

    assert found(tmp_path / "model") == ["b", "broken", "c", "itself", "linked/again/deep/a"]


def test_loops_end(tmp_path: Path) -> None:
    """A folder inside itself, two inside each other, and one that holds what it lies in."""
    model = tmp_path / "model"
    for name in ("x", "y"):
        plant(model / name / "file")
    (model / "self").symlink_to(model)
    (model / "x" / "y").symlink_to(model / "y")
    (model / "y" / "x").symlink_to(model / "x")
    (model / "x" / "up").symlink_to(tmp_path)

    assert found(model) == ["x/file", "x/y/file", "y/file", "y/x/file"]


def test_many_folders_linked_to_each_other(tmp_path: Path) -> None:
    """Take no time that grows with the factorial of their number."""
    folders = [tmp_path / str(i) for i in range(6)]
    for folder in folders:
        plant(folder / "file")
    for one in folders:
        for other in folders:
            (one / f"to{other.name}").symlink_to(other)

    assert max(path.count("/") for path in found(tmp_path)) == MAX_NESTED_LINKS + 1


def test_a_pipeline_of_linked_parts_is_that_pipeline(tmp_path: Path) -> None:
    """Its hash is the plain folder's, wherever its parts lie, and a part's weights count."""
    plain, linked, store = tmp_path / "plain", tmp_path / "linked", tmp_path / "store"
    pipelines.stable_diffusion().save_pretrained(plain)
    shutil.copytree(plain, store)
    linked.mkdir()
    shutil.copy(plain / "model_index.json", linked)
    for part in store.iterdir():
        if part.is_dir():
            (linked / part.name).symlink_to(part)

    assert model_hash(linked) == model_hash(plain)
    pipelines.stable_diffusion(seed=1).unet.save_pretrained(store / "unet")
    assert model_hash(linked) != model_hash(plain)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_cannot_be_listed(tmp_path: Path) -> None:
    """Is told: half a model's hash would look like any other."""
    (tmp_path / "unet").mkdir(mode=0)
    with pytest.raises(ModelError, match="Permission denied"):
        model_hash(tmp_path)
