"""What calibration sees of a head in a few passes is what the head drafts, token after token."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.heads import (
    EAGLE,
    EAGLE3,
    MEDUSA,
    eagle3_weights,
    eagle_weights,
    loaded,
    medusa_weights,
    write_head,
    write_with_mtp,
)
from support.models import VOCAB, tiny

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.trimmed import can_trim, trim
from dynx.runtime.heads.formats import head_format, own_head
from dynx.runtime.heads.load import load_head
from dynx.runtime.loading import Source
from dynx.speculation.drafters.head import HeadBackend
from dynx.speculation.engine import Drafters, Engine
from dynx.speculation.head_traces import MAX_DEPTH, HeadPass, read_head
from dynx.speculation.traces import Text
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = 8
TEXT = Text([(7 * i * i + 3) % VOCAB for i in range(30)], PROMPT)


def head_of(name: str, folder: Path) -> HeadBackend:
    found: Source | None
    if name in ("qwen3_5_text", "deepseek_v3"):
        found = own_head(Source(name, write_with_mtp(folder, name), "folder"))
        model: Any = loaded(folder)
    else:
        config, weights = {
            "eagle3": (EAGLE3, eagle3_weights()),
            "eagle": (EAGLE, eagle_weights()),
            "medusa": (MEDUSA, medusa_weights()),
        }[name]
        found = Source(name, write_head(folder, config, weights), "folder")
        model = tiny("llama", num_hidden_layers=6)
    assert found is not None
    target, kind = EagerBackend(model), head_format(found)
    assert kind is not None
    head, layers = load_head(found, kind, target)
    return HeadBackend(head, target, layers, kind.title)


def drafted(head: HeadBackend) -> list[tuple[list[float], list[bool]]]:
    """By position of the answer: what the drafter says while each draft is taken for the text's token."""
    engine = Engine(head.target, Drafters(head, lookup=False))
    drafter: Any = engine._open_drafters(Request(TEXT.tokens[:PROMPT], 5))["draft"]
    drafter.session = head.target.open()
    drafter.session.forward(TEXT.tokens[:PROMPT])
    out = []
    for at in range(PROMPT + 1, len(TEXT.tokens)):
        drafter.sync(TEXT.tokens[:at])
        signals: list[float] = []
        right: list[bool] = []
        for token in TEXT.tokens[at : at + MAX_DEPTH]:
            draft = drafter.propose()
            if draft is None:
                break
            signals.append(draft.signal)
            right.append(draft.token == token)
            drafter._drafted[-1] = token
        out.append((signals, right))
        drafter.session.forward([TEXT.tokens[at - 1]])
    return out


@pytest.mark.parametrize("name", ["eagle3", "eagle", "medusa", "qwen3_5_text", "deepseek_v3"])
def test_passes_show_what_is_drafted(name: str, tmp_path: Path) -> None:
    """At each position and depth the signal and the rightness are those of drafting behind accepted drafts."""
    head = head_of(name, tmp_path / "head")
    found = read_head(head, TEXT, VOCAB, Sampling())

    assert len(found.signals) == (3 if name == "medusa" else MAX_DEPTH)
    for row, (signals, right) in enumerate(drafted(head)):
        seen = [depth[row] for depth in found.signals if row < len(depth)]
        assert seen == pytest.approx(signals, abs=1e-3)
        assert [depth[row] for depth in found.right if row < len(depth)] == right


def test_traces_count_drafts_before_the_first_wrong_one() -> None:
    """A position's trace has the signals of all depths, and keeps what comes before the first wrong draft."""
    text = Text([0] * 6, 2)  # three positions
    found = HeadPass([[1.0, 2.0, 3.0], [4.0, 5.0]], [[True, False, True], [False, True]]).traces(text)

    assert [(trace.signals, trace.kept) for trace in found] == [((1.0, 4.0), 1), ((2.0, 5.0), 0), ((3.0,), 1)]


def test_the_output_head_is_cut_for_heads_too(tmp_path: Path) -> None:
    """A head that drafts by the target's output head drafts kept tokens and the text's own alone, and the target is whole."""
    head = head_of("qwen3_5_text", tmp_path / "head")
    whole = head.target.open().forward(TEXT.tokens[:5])
    assert can_trim(head)
    trim(head, [1, 2])
    session = head.open()
    session.forward([9, 11, 9], keep=1)
    head.target.open().forward([9, 11])
    row = session.forward([9], keep=1)[0]

    assert set((row > row.min()).nonzero().flatten().tolist()) == {1, 2, 9, 11}
    assert torch.equal(head.target.open().forward(TEXT.tokens[:5]), whole)
