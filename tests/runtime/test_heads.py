"""Draft heads: recognised by their published configurations, computed as these say, refused by name where they can't be read."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.heads import (
    DRAFT_VOCAB,
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
from support.models import VOCAB, tiny
from torch import Tensor, nn

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime.backends.eager import EagerBackend
from dynx.runtime.backends.trimmed import LEFT_OUT_LOGIT
from dynx.runtime.heads.formats import head_format, layers_read, own_head
from dynx.runtime.heads.load import load_head
from dynx.runtime.heads.networks import ChainHead, ParallelHeads
from dynx.runtime.loading import Source

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [7, 30, 2, 51, 18, 7, 30, 2, 44]


def source(folder: Path) -> Source:
    return Source(folder.name, folder, "folder")


def six_layers() -> EagerBackend:
    return EagerBackend(tiny("llama", num_hidden_layers=6))


def built(of: Source, target: EagerBackend) -> tuple[Any, tuple[int, ...]]:
    kind = head_format(of)
    assert kind is not None
    return load_head(of, kind, target)


def rms(states: Tensor, weight: Tensor) -> Tensor:
    return states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-5) * weight


def attention(weights: dict[str, Tensor], prefix: str, states: Tensor) -> Tensor:
    """Causal attention of 4 heads of 8 numbers over 2 pairs of keys and values, rotated by position."""
    count = len(states)
    q, k, v = (states @ weights[f"{prefix}self_attn.{name}_proj.weight"].T for name in "qkv")
    angles = torch.arange(count)[:, None] * 10000.0 ** (-torch.arange(0, 8, 2) / 8)

    def rotated(x: Tensor) -> Tensor:
        a, b = x[..., :4], x[..., 4:]
        cos, sin = angles.cos()[:, None], angles.sin()[:, None]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)

    q, k, v = rotated(q.view(count, 4, 8)), rotated(k.view(count, 2, 8)), v.view(count, 2, 8)
    out = torch.zeros(count, 4, 8)
    for head in range(4):
        scores = q[:, head] @ k[:, head // 2].T / 8**0.5
        scores = scores.masked_fill(torch.ones(count, count, dtype=torch.bool).triu(1), -torch.inf)
        out[:, head] = scores.softmax(-1) @ v[:, head // 2]
    return out.reshape(count, SIZE) @ weights[f"{prefix}self_attn.o_proj.weight"].T


def after_attention(weights: dict[str, Tensor], prefix: str, states: Tensor) -> Tensor:
    normed = rms(states, weights[f"{prefix}post_attention_layernorm.weight"])
    gate, up = (normed @ weights[f"{prefix}mlp.{name}_proj.weight"].T for name in ("gate", "up"))
    return states + (nn.functional.silu(gate) * up) @ weights[f"{prefix}mlp.down_proj.weight"].T


def run(head: ChainHead, features: Tensor) -> tuple[Tensor, Tensor]:
    """States and logits of a head over TOKENS, in two calls."""
    cache = head.open()
    with torch.inference_mode():
        states = head.fuse(features)
        found = torch.cat([head(TOKENS[:4], states[:4], cache), head(TOKENS[4:], states[4:], cache)])
        return found, head.logits(found)


@pytest.mark.parametrize("published", ["eagle3", "speculator"])
def test_eagle3_is_computed_as_published(published: str, tmp_path: Path) -> None:
    """Three layers' states are fused, embeddings and states go side by side into attention, d2t places the draft vocabulary.

    What the next draft starts from are the states before the last norm. speculators' heads add the normed states instead.
    """
    prefix = "midlayer." if published == "eagle3" else "layers.0."
    weights = eagle3_weights(prefix=prefix)
    config = EAGLE3 if published == "eagle3" else SPECULATOR
    target = six_layers()
    head, layers = built(source(write_head(tmp_path, config, weights)), target)
    features = torch.randn(len(TOKENS), 3 * SIZE, generator=torch.Generator().manual_seed(2))
    states, logits = run(head, features)

    fused = features @ weights["fc.weight"].T
    normed = rms(fused, weights[f"{prefix}hidden_norm.weight"])
    embeddings = rms(target.model.get_input_embeddings().weight[TOKENS], weights[f"{prefix}input_layernorm.weight"])
    rest = fused if published == "eagle3" else normed
    want = after_attention(weights, prefix, rest + attention(weights, prefix, torch.cat([embeddings, normed], dim=-1)))
    drafted = rms(want, weights["norm.weight"]) @ weights["lm_head.weight"].T
    kept = torch.arange(DRAFT_VOCAB) + weights["d2t"]
    assert layers == (2, 3, 3)
    torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits[:, kept], drafted, rtol=1e-4, atol=1e-4)
    assert set(logits[:, ~weights["t2d"]].flatten().tolist()) == {LEFT_OUT_LOGIT}
    assert weights["t2d"].nonzero().flatten().tolist() == kept.tolist()


def test_eagle_is_computed_as_published(tmp_path: Path) -> None:
    """Embedding and state go through `fc` with its bias, then a layer without a first norm, then the target's head."""
    weights, target = eagle_weights(), six_layers()
    head, layers = built(source(write_head(tmp_path, EAGLE, weights)), target)
    features = torch.randn(len(TOKENS), SIZE, generator=torch.Generator().manual_seed(2))
    states, logits = run(head, features)

    inputs = torch.cat([weights["embed_tokens.weight"][TOKENS], features], dim=-1) @ weights["fc.weight"].T
    inputs = inputs + weights["fc.bias"]
    want = after_attention(weights, "layers.0.", inputs + attention(weights, "layers.0.", inputs))
    assert layers == (6,)
    torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits, target.model.lm_head(want), rtol=1e-4, atol=1e-4)


def test_medusa_is_computed_as_published(tmp_path: Path) -> None:
    """Each head is x + SiLU(Wx + b) and a linear layer of its own."""
    weights, target = medusa_weights(), six_layers()
    head, layers = built(source(write_head(tmp_path, MEDUSA, weights, "medusa_lm_head")), target)
    states = torch.randn(5, SIZE, generator=torch.Generator().manual_seed(2))

    assert isinstance(head, ParallelHeads)
    assert (layers, len(head.heads)) == ((6,), 3)
    for number in range(3):
        inner = states @ weights[f"{number}.0.linear.weight"].T + weights[f"{number}.0.linear.bias"]
        want = (states + nn.functional.silu(inner)) @ weights[f"{number}.1.weight"].T
        torch.testing.assert_close(head.logits(states, number), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["deepseek_v3", "glm4_moe"])
def test_next_token_layers_are_transformers(kind: str, tmp_path: Path) -> None:
    """The block behind the last gives the states that transformers' own loader computes with it."""
    layers = pytest.importorskip("transformers.modeling_layers")
    caches = pytest.importorskip("transformers.cache_utils")
    if not hasattr(layers, "MtpModel"):
        pytest.skip("this transformers has no multi-token prediction")
    folder = write_with_mtp(tmp_path / kind, kind)
    model: Any = loaded(folder)
    model._keys_to_ignore_on_load_unexpected = [r"layers\.2\."]  # by which they find it; named for the published sizes
    theirs = layers.MtpModel.from_pretrained(model)
    own = own_head(source(folder))
    assert own is not None
    head, read = built(own, EagerBackend(loaded(folder)))
    features = torch.randn(len(TOKENS), SIZE, generator=torch.Generator().manual_seed(2))
    states, logits = run(head, features)

    with torch.inference_mode():
        want = theirs.forward_layer(
            0,
            features[None],
            torch.arange(len(TOKENS))[None],
            caches.MtpCache(config=model.config.get_mtp_config()),
            input_ids=torch.tensor([TOKENS]),
        )[0]
    assert read == (2,)
    torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.lm_head(want), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen3_5_text", "qwen3_next", "qwen3_5_moe_text"])
def test_mtp_of_qwen_is_computed_as_published(kind: str, tmp_path: Path) -> None:
    """Normed embedding and normed state go through `mtp.fc`, a block of full attention, `mtp.norm` and the target's head."""
    folder = write_with_mtp(tmp_path / kind, kind)
    model: Any = loaded(folder)
    own = own_head(source(folder))
    assert own is not None
    head, read = built(own, EagerBackend(loaded(folder)))
    features = torch.randn(len(TOKENS), SIZE, generator=torch.Generator().manual_seed(2))
    states, logits = run(head, features)

    weights = load_file(folder / "model.safetensors")
    full = model.config.layer_types.index("full_attention")
    block, eps = model.model.layers[full], model.config.rms_norm_eps
    # The target's own block with the head's weights, wherever transformers joins or splits experts.
    block.load_state_dict(head.body.layers[0].state_dict())
    norm = lambda x, name: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * (1 + weights[f"mtp.{name}.weight"])  # noqa: E731
    with torch.inference_mode():
        embedded = model.model.embed_tokens.weight[TOKENS]
        inputs = torch.cat([norm(embedded, "pre_fc_norm_embedding"), norm(features, "pre_fc_norm_hidden")], dim=-1)
        inputs = (inputs @ weights["mtp.fc.weight"].T)[None]
        positions = torch.arange(len(TOKENS))[None]
        mask = torch.zeros(len(TOKENS), len(TOKENS)).masked_fill(
            torch.ones(len(TOKENS), len(TOKENS), dtype=torch.bool).triu(1), -torch.inf
        )
        rotation = model.model.rotary_emb(inputs, positions)
        out = block(inputs, position_embeddings=rotation, attention_mask=mask[None, None], position_ids=positions)
        want = norm(out[0] if out.dim() > 2 else out, "norm")
    attention_weights = {n: w for n, w in weights.items() if n.startswith("mtp.layers.0.self_attn.")}
    for name, weight in attention_weights.items():
        torch.testing.assert_close(block.get_parameter(name.removeprefix("mtp.layers.0.")).detach(), weight)
    assert read == (3,)
    torch.testing.assert_close(states, want, rtol=1e-4, atol=1e-4)
    with torch.inference_mode():
        torch.testing.assert_close(logits, model.lm_head(want), rtol=1e-4, atol=1e-4)


def test_layers_that_eagle3_reads() -> None:
    """A low, a middle and a high layer by default; numbers of `eagle_config` are those of the blocks before."""
    from dynx.runtime.heads.formats import HeadFormat

    kind = HeadFormat("eagle3", "an EAGLE-3 head")
    assert layers_read(kind, {}, 36) == (2, 18, 33)
    assert layers_read(kind, {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 17, 32]}}, 36) == (2, 18, 33)
    assert layers_read(kind, {"eagle_aux_hidden_state_layer_ids": [2, 18, 33]}, 36) == (2, 18, 33)
    assert layers_read(HeadFormat("eagle", "an EAGLE head"), {}, 36) == (36,)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"architectures": ["DFlashDraftModel"], "model_type": "qwen3", "block_size": 16}, "DFlash"),
        ({"hydra_num_heads": 4, "hydra_num_layers": 4}, "Hydra"),
        ({"architectures": ["MLPSpeculatorPreTrainedModel"], "model_type": "mlp_speculator"}, "MLP speculator"),
        ({"architectures": ["Eagle3DeepseekV2ForCausalLM"]}, "DeepSeek layer"),
        ({"architectures": ["EagleMistralLarge3ForCausalLM"]}, "EagleMistralLarge3ForCausalLM"),
    ],
    ids=lambda each: str(each)[:20],
)
def test_other_formats_are_refused_by_name(config: dict[str, Any], said: str, tmp_path: Path) -> None:
    """A drafter that dynx can't read is called by its name, with what it could read."""
    (tmp_path / "config.json").write_text(json.dumps(config))

    with pytest.raises(UnsupportedModelError, match=said) as e:
        head_format(source(tmp_path))
    assert e.value.hint is not None
    assert "EAGLE-3" in e.value.hint


def test_models_are_no_heads(tmp_path: Path) -> None:
    """An ordinary model's folder is no head and has none of its own."""
    tiny("llama").save_pretrained(tmp_path)

    assert head_format(source(tmp_path)) is None
    assert own_head(source(tmp_path)) is None


def _shorter(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**weights, "d2t": weights["d2t"] + VOCAB}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w: {n: t for n, t in w.items() if "q_proj" not in n}, "lacks 1 of its weights"),
        (lambda w: {n: t for n, t in w.items() if n != "norm.weight"}, "lacks 1 of its weights"),
        (lambda w: {**w, "fc.weight": torch.zeros(SIZE, 4 * SIZE)}, "isn't for this model: it reads 128 numbers"),
        (_shorter, "isn't for this model: d2t"),
        (lambda w: {**w, "midlayer.mlp.up_proj.weight": torch.zeros(3, SIZE)}, "isn't for this model"),
        (lambda w: {**w, "layers.1.mlp.up_proj.weight": torch.zeros(3, SIZE)}, "a part that EAGLE heads don't have"),
    ],
    ids=["layer", "norm", "other size", "other vocabulary", "other shape", "second layer"],
)
def test_heads_that_do_not_fit_are_refused(change: Any, said: str, tmp_path: Path) -> None:
    """A head with parts missing, or made for another model, is refused with what is wrong."""
    folder = write_head(tmp_path, EAGLE3, change(eagle3_weights()))

    with pytest.raises((ModelError, UnsupportedModelError), match=said):
        built(source(folder), six_layers())


def test_torn_files_are_refused(tmp_path: Path) -> None:
    """A file that ends too early is named."""
    folder = write_head(tmp_path, EAGLE3, eagle3_weights())
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(ModelError, match="truncated"):
        built(source(folder), six_layers())


def test_pickles_are_read_where_allowed(tmp_path: Path) -> None:
    """Medusa heads are published as pickles: they are refused, and read without running code where that is allowed."""
    (tmp_path / "config.json").write_text(json.dumps(MEDUSA))
    torch.save(medusa_weights(), tmp_path / "medusa_lm_head.pt")
    kind = head_format(source(tmp_path))
    assert kind is not None

    with pytest.raises(ModelError, match="pickled"):
        load_head(source(tmp_path), kind, six_layers())
    head, _ = load_head(source(tmp_path), kind, six_layers(), allow_pickle=True)
    assert isinstance(head, ParallelHeads)


def test_a_part_of_multi_token_prediction_is_refused(tmp_path: Path) -> None:
    """Where some tensors of a model's own head are missing, they are named."""
    folder = write_with_mtp(tmp_path / "model", "qwen3_5_text")
    state = load_file(folder / "model.safetensors")
    own = own_head(source(folder))
    assert own is not None
    for name in ("mtp.pre_fc_norm_hidden.weight", "mtp.layers.0.self_attn.k_proj.weight"):
        save_file({n: w for n, w in state.items() if n != name}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ModelError, match="lacks 1 of its weights"):
            built(own, EagerBackend(loaded(folder)))
