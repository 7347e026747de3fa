"""Draft heads: whatever they draft, text is plain decoding's; a head that is right is accepted."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from support.heads import (
    EAGLE,
    EAGLE3,
    MEDUSA,
    SIZE,
    SPECULATOR,
    eagle3_weights,
    eagle_weights,
    loaded,
    medusa_weights,
    write_head,
    write_with_mtp,
)
from support.models import VOCAB, Bushy, Whim, tiny
from torch import Tensor, nn

from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.heads.formats import head_format, own_head
from dynx.runtime.heads.load import load_head
from dynx.runtime.heads.networks import ChainHead
from dynx.runtime.loading import Source
from dynx.speculation.drafters.head import HeadBackend
from dynx.speculation.engine import Drafters, Engine, Run
from dynx.speculation.policy import Plain, Static
from dynx.speculation.sampling import LogitsProcessors
from dynx.speculation.types import Request, Sampling

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from dynx.speculation.policy import Policy

PROMPT = (7, 30, 2, 51, 18, 7, 30, 2, 44, 9, 51, 18)
LONG = 48
FOLDERS = {
    "eagle3": (EAGLE3, eagle3_weights),
    "speculator": (SPECULATOR, lambda: eagle3_weights(prefix="layers.0.")),
    "eagle": (EAGLE, eagle_weights),
    "medusa": (MEDUSA, medusa_weights),
}
OWN = ("qwen3_5_text", "qwen3_next", "deepseek_v3", "glm4_moe")


def ids(run: Run) -> list[int]:
    return [token.id for token in run if token.id >= 0]


def with_head(model: Any, source: Source) -> HeadBackend:
    """A target with the head of a folder."""
    target, kind = EagerBackend(model), head_format(source)
    assert kind is not None
    head, layers = load_head(source, kind, target)
    return HeadBackend(head, target, layers, kind.title)


def generated(model: Any, count: int = LONG) -> list[int]:
    """transformers' greedy answer."""
    prompt = torch.tensor([PROMPT])
    mask = torch.ones_like(prompt)
    out = model.generate(prompt, attention_mask=mask, max_new_tokens=count, do_sample=False, pad_token_id=0)
    return out[0, len(PROMPT) :].tolist()


class Case:
    """A model with a head, and transformers' greedy answer."""

    def __init__(self, name: str, folder: Path) -> None:
        if name in OWN:
            write_with_mtp(folder, name)
            source = own_head(Source(name, folder, "folder"))
            assert source is not None
            model: Any = loaded(folder)
            self.want = generated(loaded(folder))
        else:
            config, weights = FOLDERS[name]
            file = "medusa_lm_head" if name == "medusa" else "model"
            source = Source(name, write_head(folder, config, weights(), file), "folder")
            model = tiny("llama", num_hidden_layers=6)
            self.want = generated(tiny("llama", num_hidden_layers=6))
        self.head = with_head(model, source)

    def run(self, request: Request, policy: Policy | None, *, trees: bool = False, lookup: bool = False) -> Run:
        """Begin an answer that the head drafts for."""
        drafters = Drafters(self.head, lookup=lookup, trees=trees)
        return Engine(self.head.target, drafters).start(request, policy)


@pytest.fixture(scope="module", params=[*FOLDERS, *OWN])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Every format of heads, with random weights."""
    return Case(request.param, tmp_path_factory.mktemp(request.param) / "model")


@pytest.mark.parametrize("length", [1, 3, 7])
def test_drafts_change_nothing(case: Case, length: int) -> None:
    """A fixed number of a head's drafts leaves the greedy text as transformers writes it, in float32, token for token."""
    run = case.run(Request(PROMPT, LONG), Static("draft", length))

    assert ids(run) == case.want
    assert run.tallies["draft"].submitted > LONG // 2


@pytest.mark.parametrize("seed", range(2))
def test_arbitrary_rounds_change_nothing(case: Case, seed: int) -> None:
    """Nor do rounds that draft with the head, with lookup or not at all, in any order and of any length."""
    assert ids(case.run(Request(PROMPT, LONG), Whim(seed), lookup=True)) == case.want


def test_trees_change_nothing(case: Case) -> None:
    """Nor do trees with a head's second choices, where the model takes trees."""
    assert ids(case.run(Request(PROMPT, LONG), Bushy(1), trees=True)) == case.want


def test_seeded_sampling_is_the_seeds(case: Case) -> None:
    """With a seed the text is the one that plain decoding samples with it."""
    request = Request(PROMPT, 24, Sampling(temperature=0.8, seed=5))

    assert ids(case.run(request, Static("draft", 3))) == ids(case.run(request, Plain()))


def test_text_goes_on_over_a_kept_cache(case: Case) -> None:
    """A second text whose beginning is kept from the first is what it would be anew."""
    first = case.run(Request(PROMPT, 12), Static("draft", 2))
    written = [*PROMPT, *ids(first)]
    engine = Engine(case.head.target, Drafters(case.head, lookup=False))
    again = engine.start(Request([*written, 3, 5], 12), Static("draft", 2), kept=first.kept)

    assert ids(again) == ids(case.run(Request([*written, 3, 5], 12), Plain()))
    assert again.tallies["draft"].submitted > 0


class Oracle:
    """Replays a function along every path of its random choices."""

    def __init__(self) -> None:
        self.script: list[int] = []
        self.widths: list[int] = []
        self.at, self.probability = 0, 1.0

    def choose(self, odds: Sequence[float]) -> int:
        """An index in proportion to `odds`."""
        if self.at == len(self.script):
            self.script.append(0)
            self.widths.append(len(odds))
        choice = self.script[self.at]
        self.probability *= odds[choice] / sum(odds)
        self.at += 1
        return choice

    def multinomial(self, weights: Tensor, count: int = 1, **_: Any) -> Tensor:
        """Stand in for torch's."""
        return torch.tensor([self.choose(weights.double().tolist())])

    def paths(self, function: Any) -> Iterator[tuple[float, tuple[int, ...]]]:
        """Every path's probability and result."""
        while True:
            self.at, self.probability = 0, 1.0
            out = function()
            yield self.probability, out
            while self.script and self.script[-1] + 1 == self.widths[-1]:
                self.script.pop()
                self.widths.pop()
            if not self.script:
                return
            self.script[-1] += 1


class Chance:
    """A uniform number of which only a comparison is asked."""

    def __init__(self, oracle: Oracle) -> None:
        self.oracle = oracle

    def __lt__(self, bar: float) -> bool:
        bar = min(max(bar, 0.0), 1.0)
        return self.oracle.choose([bar, 1 - bar]) == 0


def test_sampled_text_has_the_targets_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Total variation between texts that a head drafts for and texts sampled plainly is at most 1e-6, by enumeration."""
    vocab, length, prompt = 3, 3, (1, 2)
    weights = eagle_weights()
    weights["embed_tokens.weight"] = weights["embed_tokens.weight"][:vocab]
    source = Source("eagle", write_head(tmp_path, {**EAGLE, "vocab_size": vocab}, weights), "folder")
    head = with_head(tiny("llama", vocab=vocab), source)
    sampling, oracle = Sampling(temperature=0.7), Oracle()
    monkeypatch.setattr(torch, "multinomial", oracle.multinomial)
    engine = Engine(head.target, Drafters(head, lookup=False))

    def drafted() -> tuple[int, ...]:
        run = engine.start(Request(prompt, length, sampling), Static("draft", 2))
        run._verifier._uniform = lambda: Chance(oracle)  # type: ignore[assignment, method-assign, return-value]
        return tuple(ids(run))

    found: dict[tuple[int, ...], float] = {}
    for probability, text in oracle.paths(drafted):
        found[text] = found.get(text, 0.0) + probability
    processors, session = LogitsProcessors(sampling), head.target.open()
    plain = {}
    for text in itertools.product(range(vocab), repeat=length):
        session.rollback(0)
        rows = session.forward([*prompt, *text[:-1]])[len(prompt) - 1 :]
        each = processors.probabilities(rows, prompt, list(text[:-1]))
        plain[text] = float(torch.stack([each[i, token] for i, token in enumerate(text)]).double().prod())

    assert sum(found.values()) == pytest.approx(1)
    assert sum(abs(found.get(text, 0.0) - p) for text, p in plain.items()) / 2 <= 1e-6


@torch.no_grad()
def of_last_token_alone(model: Any) -> Any:
    """Let a model's next token depend on the last one alone: its blocks add nothing."""
    for name, weight in model.named_parameters():
        if any(part in name for part in ("o_proj", "out_proj", "down_proj")):
            weight.zero_()
    return model


def receipt(head: HeadBackend, model: Any, length: int = 3) -> Any:
    """What comes of static drafts; the text is transformers'."""
    run = Engine(head.target, Drafters(head, lookup=False)).start(Request(PROMPT, LONG), Static("draft", length))
    assert ids(run) == generated(model)
    return run.receipt()


def test_an_eagle_head_that_is_right_is_accepted(tmp_path: Path) -> None:
    """A head that knows the rule by which the model writes has all its drafts accepted."""
    model = of_last_token_alone(tiny("llama"))
    weights = {name: torch.zeros_like(each) for name, each in eagle_weights().items()}
    with torch.no_grad():
        weights["embed_tokens.weight"] = model.model.norm(model.model.embed_tokens.weight).clone()
    weights["fc.weight"][:, :SIZE] = torch.eye(SIZE)
    weights["layers.0.post_attention_layernorm.weight"] += 1
    head = with_head(model, Source("eagle", write_head(tmp_path, EAGLE, weights), "folder"))

    found = receipt(head, of_last_token_alone(tiny("llama")))
    assert found.drafters["draft"].acceptance == 1
    assert found.tokens_per_forward > 3.5


def test_multi_token_prediction_that_is_right_is_accepted(tmp_path: Path) -> None:
    """So has a multi-token prediction."""
    folder = write_with_mtp(tmp_path / "model", "qwen3_5_text")
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "model.safetensors")
    for name, weight in state.items():
        if any(part in name for part in ("o_proj", "out_proj", "down_proj")) or name.startswith("mtp.pre_fc_norm"):
            weight.zero_()
    state["mtp.fc.weight"] = torch.cat([torch.eye(SIZE), torch.zeros(SIZE, SIZE)], dim=1)
    state["mtp.norm.weight"] = next(state[name] for name in state if name.endswith("model.norm.weight")).clone()
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    source = own_head(Source("model", folder, "folder"))
    assert source is not None

    found = receipt(with_head(loaded(folder), source), loaded(folder))
    assert found.drafters["draft"].acceptance == 1
    assert found.tokens_per_forward > 3.5


def test_medusa_heads_that_are_right_are_accepted(tmp_path: Path) -> None:
    """So have Medusa heads, each for its own token."""
    model = of_last_token_alone(tiny("llama", hidden_size=VOCAB))
    with torch.no_grad():
        states = model.model.norm(model.model.embed_tokens.weight).double()
        after = model.lm_head(states.float()).argmax(-1)
    weights, token = {}, after
    for number in range(3):
        token = after[token]  # behind the token that the model gives itself
        wanted = nn.functional.one_hot(token, VOCAB).double() * 20
        weights[f"{number}.0.linear.weight"] = torch.zeros(VOCAB, VOCAB)
        weights[f"{number}.0.linear.bias"] = torch.zeros(VOCAB)
        weights[f"{number}.1.weight"] = torch.linalg.lstsq(states, wanted).solution.T.float()
    head = with_head(model, Source("medusa", write_head(tmp_path, MEDUSA, weights, "medusa_lm_head"), "folder"))

    found = receipt(head, of_last_token_alone(tiny("llama", hidden_size=VOCAB)))
    assert found.drafters["draft"].acceptance == 1


def test_an_eagle3_head_that_was_trained_is_accepted(tmp_path: Path) -> None:
    """An EAGLE-3 head learns, through the network as it drafts, what the model writes; then its drafts are accepted."""
    model = of_last_token_alone(tiny("llama", num_hidden_layers=6))
    config = {**EAGLE3, "draft_vocab_size": VOCAB}
    weights = eagle3_weights()
    generator = torch.Generator().manual_seed(1)
    weights["lm_head.weight"] = torch.randn(VOCAB, SIZE, generator=generator) * SIZE**-0.5
    weights["d2t"], weights["t2d"] = torch.zeros(VOCAB, dtype=torch.long), torch.ones(VOCAB, dtype=torch.bool)
    head = with_head(model, Source("eagle3", write_head(tmp_path, config, weights), "folder"))
    network = head.head
    assert isinstance(network, ChainHead)
    with torch.no_grad():
        after = model.lm_head(model.model.norm(model.model.embed_tokens.weight)).argmax(-1)
    own = [
        each
        for name, each in network.named_parameters()
        if not name.startswith(("embed.", "embeddings.")) and each.is_floating_point()
    ]
    for each in own:
        each.requires_grad_()
    optimizer = torch.optim.Adam(own, lr=5e-3)
    for _ in range(250):
        text = torch.randint(VOCAB, (32,), generator=generator).tolist()
        for i in (i for i in range(32) if i % 4):
            text[i] = int(after[text[i - 1]])
        session = head.target.open()
        session.forward(text)
        found = session.hidden_states(0)
        assert found is not None
        cache = network.open()
        states = network(text[1:], network.fuse(found[1][:-1].clone()), cache)
        loss = nn.functional.cross_entropy(network.logits(states), after[text[1:]])
        chained = states[:-1].detach()
        cache = network.open()
        deeper = network(text[2:], chained, cache)
        loss = loss + nn.functional.cross_entropy(network.logits(deeper), after[text[2:]])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    found = receipt(head, of_last_token_alone(tiny("llama", num_hidden_layers=6)))
    assert found.drafters["draft"].acceptance > 0.9
