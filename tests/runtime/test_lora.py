"""LoRA adapters change weights as peft does, belong to one model, and are part of what identifies it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.commands import PROMPT, Result
from support.models import tiny

from dynx.errors import InvalidInput, ModelError, UnsupportedModelError
from dynx.runtime.loading import find, load_causal_lm, with_adapters
from dynx.runtime.lora import Adapter, check, fold, identity, split_weight

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    Cli = Callable[..., Result]

TEXT = torch.tensor([[3, 14, 15, 9, 2, 6]])


def random(*shape: int, seed: int = 0) -> Tensor:
    """Small numbers, the same each time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.2


def write(folder: Path, tensors: dict[str, Tensor], base: str = "somebody/tiny", **settings: Any) -> Adapter:
    """An adapter as peft writes one."""
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}, folder / "adapter_model.safetensors"
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": base, **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return Adapter(folder.name, folder)


def pair(module: str, rank: int, inputs: int, outputs: int, seed: int = 0) -> dict[str, Tensor]:
    """A and B of one linear layer."""
    a, b = random(rank, inputs, seed=seed), random(outputs, rank, seed=seed + 1)
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


QUERY = "model.layers.0.self_attn.q_proj"


def test_weights_become_the_sum_rounded_once(tmp_path: Path) -> None:
    """W + alpha / r times weight times B·A in float32, then bfloat16; other weights stay, bit for bit."""
    model = tiny("llama").bfloat16()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parts = pair(QUERY, 2, 32, 32)
    adapter = write(tmp_path / "a", parts)
    fold(model, [Adapter("a", adapter.folder, 0.5)], "tiny")

    a, b = parts[f"{QUERY}.lora_A.weight"], parts[f"{QUERY}.lora_B.weight"]
    want = (before[f"{QUERY}.weight"].float() + 0.5 * 2 * (b @ a)).bfloat16()
    after = model.state_dict()
    assert torch.equal(after[f"{QUERY}.weight"], want)
    assert not torch.equal(want, before[f"{QUERY}.weight"])
    assert all(torch.equal(after[name], before[name]) for name in before if name != f"{QUERY}.weight")


def test_two_adapters_add_up_before_rounding(tmp_path: Path) -> None:
    """One rounding, whatever their number."""
    model = tiny("llama").bfloat16()
    before = model.get_parameter(f"{QUERY}.weight").detach().float().clone()
    first, second = pair(QUERY, 2, 32, 32), pair(QUERY, 4, 32, 32, seed=5)
    fold(model, [write(tmp_path / "a", first), write(tmp_path / "b", second, r=4)], "tiny")
    sums = [2.0 * (first[f"{QUERY}.lora_B.weight"] @ first[f"{QUERY}.lora_A.weight"])]
    sums.append(1.0 * (second[f"{QUERY}.lora_B.weight"] @ second[f"{QUERY}.lora_A.weight"]))
    assert torch.equal(model.get_parameter(f"{QUERY}.weight"), (before + sums[0] + sums[1]).bfloat16())


PEFT: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {"target_modules": ["q_proj", "down_proj"]}),
    "rank-stabilised": ("llama", {"target_modules": ["q_proj"], "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "v_proj"],
            "rank_pattern": {"v_proj": 2},
            "alpha_pattern": {"layers.1.self_attn.q_proj": 32},
        },
    ),
    "bias": ("qwen2", {"target_modules": ["q_proj"], "bias": "all"}),
    "bias of its own": ("qwen2", {"target_modules": ["q_proj"], "lora_bias": True}),
    "embedding": ("llama", {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": ("llama", {"target_modules": ["lm_head"]}),
    "saved modules": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]}),
    "inputs first": ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "decomposed": ("llama", {"target_modules": ["q_proj", "up_proj"], "use_dora": True}),
    "decomposed, inputs first": ("gpt2", {"target_modules": ["c_attn"], "fan_in_fan_out": True, "use_dora": True}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", PEFT)
def test_folded_as_peft_computes(case: str, tmp_path: Path) -> None:
    """Logits of the folded model are those of peft's model, which adds the adapter in each pass."""
    peft = pytest.importorskip("peft")
    kind, settings = PEFT[case]
    changed = peft.get_peft_model(tiny(kind), peft.LoraConfig(r=4, lora_alpha=8, task_type="CAUSAL_LM", **settings))
    for seed, (name, parameter) in enumerate(changed.named_parameters()):
        if "lora" in name or "modules_to_save" in name or (name.endswith("bias") and parameter.requires_grad):
            with torch.no_grad():
                parameter.add_(random(*parameter.shape, seed=seed))
    changed.save_pretrained(tmp_path / "adapter")
    want = changed.eval()(TEXT).logits

    model = tiny(kind)
    plain = model(TEXT).logits
    adapter = Adapter("adapter", tmp_path / "adapter")
    check(adapter)
    fold(model, [adapter], "tiny")
    assert torch.allclose(model(TEXT).logits, want, atol=1e-4)
    assert not torch.allclose(plain, want, atol=1e-2)


def test_a_head_that_shares_the_embedding_gets_its_own(tmp_path: Path) -> None:
    """An adapter of the head leaves the embedding as it was."""
    model = tiny("llama")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert model.lm_head.weight is model.model.embed_tokens.weight
    before = model.lm_head.weight.detach().clone()
    parts = pair("lm_head", 2, 32, 64)
    fold(model, [write(tmp_path / "a", parts)], "tiny")
    assert torch.equal(model.model.embed_tokens.weight, before)
    assert torch.equal(
        model.lm_head.weight, before + 2 * parts["lm_head.lora_B.weight"] @ parts["lm_head.lora_A.weight"]
    )
    model.tie_weights()
    assert torch.equal(model.model.embed_tokens.weight, before)


WRONG: dict[str, tuple[dict[str, Tensor], dict[str, Any], str]] = {
    "module": (pair("model.layers.9.self_attn.q_proj", 2, 32, 32), {}, "tiny has no model.layers.9.self_attn.q_proj"),
    "shape": (pair(QUERY, 2, 48, 48), {}, r"q_proj is \(48, 48\) in it and \(32, 32\) in tiny"),
    "half": ({f"{QUERY}.lora_A.weight": random(2, 32)}, {}, "don't belong together"),
    "alpha": (pair(QUERY, 2, 32, 32), {"lora_alpha": None}, "has no lora_alpha"),
    "bias": ({f"{QUERY}.bias": random(32)}, {}, "has no bias"),
}


@pytest.mark.parametrize("case", WRONG)
def test_an_adapter_of_another_model_is_refused(case: str, tmp_path: Path) -> None:
    """By its modules, shapes and settings, in one line."""
    tensors, settings, words = WRONG[case]
    with pytest.raises(ModelError, match=words):
        fold(tiny("llama"), [write(tmp_path / "a", tensors, **settings)], "tiny")


UNFOLDABLE: dict[str, tuple[dict[str, Any], str]] = {
    "another type": ({"peft_type": "PROMPT_TUNING"}, "an adapter of type PROMPT_TUNING"),
    "activated": ({"alora_invocation_tokens": [1, 2]}, "acts on a part of the text"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, "repeats layers"),
    "experts": ({"target_parameters": ["experts.gate_up_proj"]}, "parameters of experts"),
    "residual base": ({"init_lora_weights": "pissa_niter_4"}, "its initialisation"),
}


@pytest.mark.parametrize("case", UNFOLDABLE)
def test_what_cannot_be_folded_is_named(case: str, tmp_path: Path) -> None:
    """Weights plus B·A would be another function."""
    settings, words = UNFOLDABLE[case]
    with pytest.raises(UnsupportedModelError, match=words):
        check(write(tmp_path / "a", pair(QUERY, 2, 32, 32), **settings))


def test_pickled_adapters_are_asked_for(tmp_path: Path) -> None:
    """As pickled models are."""
    adapter = write(tmp_path / "a", pair(QUERY, 2, 32, 32))
    file = adapter.folder / "adapter_model.safetensors"
    tensors = load_file(file)
    file.unlink()
    with pytest.raises(ModelError, match=r"has no adapter_model\.safetensors"):
        check(adapter)
    torch.save(tensors, adapter.folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickled weights only"):
        check(adapter)
    check(adapter, allow_pickle=True)
    model, before = tiny("llama"), tiny("llama").get_parameter(f"{QUERY}.weight")
    fold(model, [adapter], "tiny")
    assert not torch.equal(model.get_parameter(f"{QUERY}.weight"), before)


def test_identity_is_of_content_and_weight(tmp_path: Path) -> None:
    """The same bytes elsewhere are the same adapter; another weight, order or setting isn't."""
    a, b = (write(tmp_path / name, pair(QUERY, 2, 32, 32)) for name in "ab")
    c = write(tmp_path / "c", pair(QUERY, 2, 32, 32, seed=7))
    assert identity([a]) == identity([b])
    others = [[c], [a, c], [c, a], [Adapter("a", a.folder, 0.5)], [write(tmp_path / "d", pair(QUERY, 2, 32, 32), r=3)]]
    assert len({identity(each) for each in ([a], *others)}) == 6


def test_weights_as_they_are_typed() -> None:
    """A number after the last colon."""
    assert split_weight("./a:0.5") == ("./a", 0.5)
    assert split_weight("org/a") == ("org/a", 1.0)
    assert split_weight("a:b:-1e-1") == ("a:b", -0.1)
    assert split_weight("C:/a") == ("C:/a", 1.0)
    for wrong in ("", ":0.5", "  "):
        with pytest.raises(InvalidInput):
            split_weight(wrong)


@pytest.mark.usefixtures("alone")
def test_an_adapter_finds_its_model(
    changed: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path, relative to the working folder or to the adapter, or beside it; and it is called by its own name."""
    base = changed("base")
    parts = pair(QUERY, 2, 64, 64)
    for name in (str(base), "base", "../base"):
        adapter = write(tmp_path / "tone", parts, name)
        found = find(str(adapter.folder))
        assert (found.name, found.base, found.folder.resolve()) == ("tone", "base", base.resolve())
        assert [each.name for each in found.adapters] == ["tone"]
    monkeypatch.chdir(tmp_path)
    assert find("tone").folder.resolve() == base.resolve()

    write(tmp_path / "tone", parts, "somebody/nothing")
    with pytest.raises(ModelError, match="tone is an adapter for somebody/nothing, which isn't found"):
        find("tone")
    write(tmp_path / "tone", parts, "")
    with pytest.raises(ModelError, match="names no model"):
        find("tone")


@pytest.mark.usefixtures("alone")
def test_loaded_models_hold_their_adapters(changed: Callable[..., Path], tmp_path: Path) -> None:
    """`with_adapters` and a load are a load and `fold`."""
    source = find(str(changed("base")))
    plain = load_causal_lm(source, device="cpu", dtype="float32")
    width = plain.get_submodule(QUERY).weight.shape[1]
    write(tmp_path / "tone", pair(QUERY, 2, width, width))
    loaded = load_causal_lm(with_adapters(source, [f"{tmp_path}/tone:0.5"]), device="cpu", dtype="float32")
    fold(plain, [Adapter("tone", tmp_path / "tone", 0.5)], "base")
    assert torch.equal(loaded.get_parameter(f"{QUERY}.weight"), plain.get_parameter(f"{QUERY}.weight"))
    for wrong in (str(tmp_path / "nothing"), "nothing"):
        with pytest.raises(ModelError, match="there is no adapter"):
            with_adapters(source, [wrong])
    with pytest.raises(InvalidInput, match="`adapters`: 'bad' is no weight"):
        with_adapters(source, [f"{tmp_path}/tone:bad"])
    with pytest.raises(ModelError, match=r"adapter_config\.json is a file and no adapter"):
        with_adapters(source, [str(tmp_path / "tone" / "adapter_config.json")])
    with pytest.raises(ModelError, match="is a model and no adapter"):
        with_adapters(source, [str(source.folder)])


def test_adapters_on_the_command_line(cli: Cli, changed: Callable[..., Path], tmp_path: Path) -> None:
    """The text changes, the profile's key too, and the reason names the adapter and its model."""
    folder = changed("base")
    plain = load_causal_lm(find(str(folder)), device="cpu", dtype="float32")
    rows, columns = plain.get_submodule("lm_head").weight.shape
    parts = pair("lm_head", 2, columns, rows)
    adapter = write(tmp_path / "tone", {name: 20 * tensor for name, tensor in parts.items()}, "somebody/other")
    with_it = ("-m", folder, "--adapter", adapter.folder)

    before = cli("generate", "-m", folder, PROMPT, "-n", 8)
    after = cli("generate", *with_it, PROMPT, "-n", 8)
    assert before.code == after.code == 0
    assert before.out != after.out
    assert "tone was made for somebody/other, and is folded into base" in after.err
    assert cli("generate", "-m", folder, "--adapter", f"{adapter.folder}:0", PROMPT, "-n", 8).out == before.out

    plans = [json.loads(cli("calibrate", *words, "--dry-run", "--json").out) for words in (("-m", folder), with_it)]
    assert plans[0]["profile"] != plans[1]["profile"]
    assert plans[1]["decisions"]["adapters"]["value"] == "tone"

    wrong = write(tmp_path / "wrong", pair("model.layers.77.mlp", 2, 4, 4))
    refused = cli("generate", "-m", folder, "--adapter", wrong.folder, PROMPT)
    assert refused.code == 1
    assert "wrong is an adapter for another model: base has no model.layers.77.mlp" in refused.err
