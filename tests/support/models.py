"""Tiny random models of many architectures, for tests that need the real thing and no checkpoint.

Weights as initialised make nearly flat logits, on which every drafter is always wrong and every difference goes unseen. These are
drawn so that each block matters, the head is sharp, and a noisy copy or an early exit is right some of the time.
"""

from __future__ import annotations

from copy import deepcopy
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from dynx.runtime.backends.eager import EagerBackend, decoder_blocks
from dynx.runtime.backends.interface import Backend, Session
from dynx.runtime.decision import Decision

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers.cache_utils import Cache

    from dynx.speculation.policy import Round
    from dynx.speculation.types import DrafterCandidate, DraftSource

torch.set_num_threads(1)  # a second thread costs more than these models do
logging.set_verbosity_error()  # missing fast kernels of recurrent models, on every construction

VOCAB = 64
LAYERS = 3
WINDOW = 16

_GPT: dict[str, Any] = {"n_embd": 32, "n_layer": LAYERS, "n_head": 4}
_PLAIN: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
_GROUPED: dict[str, Any] = {**_PLAIN, "num_key_value_heads": 2}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

ROLLING: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "gpt2": {**_GPT, "n_positions": 256},
    "gpt_neox": _PLAIN,
    "gemma": {**_GROUPED, "head_dim": 8},
    "gemma2": {**_GROUPED, "head_dim": 8, "sliding_window": WINDOW, "query_pre_attn_scalar": 8, "layer_types": _MIXED},
    "gemma3_text": {
        **_GROUPED,
        "head_dim": 8,
        "sliding_window": WINDOW,
        "query_pre_attn_scalar": 8,
        "layer_types": _MIXED,
    },
    "mistral": {**_GROUPED, "sliding_window": WINDOW},
    "phi": _PLAIN,
    "opt": {**_PLAIN, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "bloom": {"hidden_size": 32, "n_layer": LAYERS, "n_head": 4},
    "falcon": {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4},
    "gptj": {**_GPT, "n_positions": 256, "rotary_dim": 8},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
}
"""Architectures whose cache can be rolled back, and what makes them tiny."""

STATEFUL: dict[str, dict[str, Any]] = {
    "mamba": {"hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 8},
    "jamba": {
        **_GROUPED,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "mamba_d_state": 8,
    },
}
"""Architectures with a recurrent state."""


_LINEAR: dict[str, Any] = {
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
_SSM: dict[str, Any] = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8}
_EXPERTS: dict[str, Any] = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 32}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 16,
    "q_lora_rank": None,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_ONE_IN_THREE = ["linear_attention", "full_attention", "linear_attention"]
HYBRID: dict[str, dict[str, Any]] = {
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": LAYERS,
        "state_size": 8,
        "num_heads": 4,
        "head_dim": 16,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "falcon_mamba": {"hidden_size": 32, "num_hidden_layers": LAYERS, "state_size": 8},
    "bamba": {**_GROUPED, **_SSM, "attn_layer_indices": [1]},
    "recurrent_gemma": {**_GROUPED, "block_types": ("recurrent", "attention"), "attention_window_size": 16},
    "zamba": {
        **_GROUPED,
        "num_key_value_heads": 4,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "mamba_d_state": 8,
        "n_mamba_heads": 2,
        "attention_head_dim": 16,
    },
    "zamba2": {
        **_GROUPED,
        "num_key_value_heads": 4,
        "num_hidden_layers": LAYERS,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "mamba_d_state": 8,
        "n_mamba_heads": 4,
        "chunk_size": 8,
        "adapter_rank": 4,
    },
    "rwkv": {"hidden_size": 32, "num_hidden_layers": LAYERS, "intermediate_size": 64, "context_length": 256},
    "xlstm": {
        "hidden_size": 64,  # its cache rounds up to this
        "num_hidden_layers": LAYERS,
        "num_heads": 2,
        "chunk_size": 8,
        "qk_dim_factor": 1.0,
        "ffn_round_up_to_multiple_of": 8,
    },
    "falcon_h1": {**_GROUPED, **_SSM, "mamba_d_ssm": 64},
    "granitemoehybrid": {
        **_GROUPED,
        **_SSM,
        "layer_types": _ONE_IN_THREE,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 32,
    },
    "lfm2": {**_GROUPED, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {**_GROUPED, **_EXPERTS, "num_dense_layers": 1, "layer_types": ["conv", "full_attention", "conv"]},
    "lfm3": {**_GROUPED, "head_dim": 8, "layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {
        **_GROUPED,
        **_LINEAR,
        **_EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 32,
        "layer_types": _ONE_IN_THREE,
    },
    "qwen3_5_text": {**_GROUPED, **_LINEAR, "head_dim": 8, "layer_types": _ONE_IN_THREE},
    "qwen3_5_moe_text": {
        **_GROUPED,
        **_LINEAR,
        **_EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 32,
        "layer_types": _ONE_IN_THREE,
    },
    "minimax": {
        **_GROUPED,
        "head_dim": 8,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "block_size": 8,
        "layer_types": _ONE_IN_THREE,
    },
    "nemotron_h": {
        **_GROUPED,
        "head_dim": 8,
        "layers_block_type": ["mamba", "attention", "mlp"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "ssm_state_size": 8,
        "n_groups": 2,
        "chunk_size": 8,
    },
    "olmo_hybrid": {
        **_GROUPED,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "layer_types": _ONE_IN_THREE,
    },
    "kimi_linear": {
        **_PLAIN,
        **_LATENT,
        "num_key_value_heads": 4,
        "linear_head_dim": 8,
        "linear_num_heads": 4,
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "layer_types": _ONE_IN_THREE,
    },
    "bailing_hybrid": {
        **_PLAIN,
        **_LATENT,
        "num_key_value_heads": 4,
        "head_dim": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 32,
        "first_k_dense_replace": 1,
        "layer_group_size": 2,
        "num_mtp_layers": 0,
    },
    "zaya": {**_GROUPED, "head_dim": 8, "num_experts": 2, "moe_intermediate_size": 32, "router_hidden_size": 8},
    "lara_mini": {
        **_GROUPED,
        **_LINEAR,
        **_EXPERTS,
        "head_dim": 8,
        "shared_expert_intermediate_size": 32,
        "sliding_window": 16,
    },
    "deepseek_v4": {
        **_PLAIN,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "q_lora_rank": 16,
        "n_routed_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 32,
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_n_heads": 2,
        "index_head_dim": 8,
        "index_topk": 8,
        "num_nextn_predict_layers": 0,
        "sliding_window": 16,
        "hc_mult": 2,
    },
}
"""Further architectures with a recurrent state or a convolution in some layers, of all that transformers 5.24 has."""

UNCONTINUED = ("minimax",)
"""Those that read several tokens from an empty state alone."""

_SHORT, _LONG = [1.0] * 4, [1.0, 4.0, 16.0, 32.0]
ORIGINAL = 48
_LONGROPE: dict[str, Any] = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": _SHORT,
    "long_factor": _LONG,
    "original_max_position_embeddings": ORIGINAL,
}
_DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
_USUAL = {"rope_type": "default", "rope_theta": 1e4}
_EXTENDED = {"max_position_embeddings": 4 * ORIGINAL, "original_max_position_embeddings": ORIGINAL}

GROWING: dict[str, tuple[str, dict[str, Any]]] = {
    "phi3-longrope": ("phi3", {**_GROUPED, **_EXTENDED, "rope_parameters": _LONGROPE}),
    "phimoe-longrope": (
        "phimoe",
        {
            **_GROUPED,
            **_EXTENDED,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "rope_parameters": _LONGROPE | {"short_mscale": 1.0, "long_mscale": 1.5},
        },
    ),
    "llama-longrope": (
        "llama",
        {**_GROUPED, "max_position_embeddings": 4 * ORIGINAL, "rope_parameters": _LONGROPE},
    ),
    "llama-dynamic": ("llama", {**_GROUPED, "max_position_embeddings": ORIGINAL, "rope_parameters": _DYNAMIC}),
    "gemma3-dynamic": (
        "gemma3_text",
        {
            **ROLLING["gemma3_text"],
            "max_position_embeddings": ORIGINAL,
            "rope_parameters": {"sliding_attention": _USUAL, "full_attention": _DYNAMIC},
        },
    ),
    "doge-sparse": ("doge", {**_GROUPED, "keep_window_size": ORIGINAL}),
}
"""Models whose logits depend on the length of a text longer than ORIGINAL: their type, and what makes them tiny."""


def tiny(kind: str, *, seed: int = 0, vocab: int = VOCAB, **changes: Any) -> Any:
    """A model of `kind` whose weights are the same for the same arguments."""
    kind, settings = GROWING.get(kind) or (kind, {**ROLLING, **STATEFUL, **HYBRID}[kind])
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocab,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        tie_word_embeddings=False,
        **deepcopy(settings | changes),
    )
    with torch.random.fork_rng():  # vectors keep their initial values, and Mamba's are drawn
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config).eval()
    _sharpen(model, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def _sharpen(model: Any, generator: torch.Generator) -> None:
    """Weights that keep signals at their size through a block, a head that makes up its mind, later blocks that say less."""
    head, table = model.get_output_embeddings(), model.get_input_embeddings()
    for module in model.modules():
        for weight in module.parameters(recurse=False):
            if weight.dim() >= 2:
                scale = 1.0 if isinstance(module, nn.Embedding) else weight.shape[-1] ** -0.5
                weight.copy_(torch.randn(weight.shape, generator=generator) * scale)
    head.weight.mul_(4.0)
    table.weight.div_(
        getattr(model.config, "hidden_size", 1) ** 0.5 if model.config.model_type.startswith("gemma") else 1.0
    )
    for index, block in enumerate(decoder_blocks(model) or []):
        for weight in block.parameters():
            if weight.dim() >= 2:
                weight.mul_(1.0 if index == 0 else 0.6)


@torch.no_grad()
def perturbed(model: Any, amount: float = 0.1, *, seed: int = 1) -> Any:
    """`model` with noise on its matrices, in place: a drafter that is right now and then."""
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() >= 2:
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * amount)
    return model


@cache
def reference(kind: str) -> Any:
    """A model that dynx never touches, for what transformers makes of it."""
    return tiny(kind)


@cache
def generated(kind: str, prompt: tuple[int, ...], count: int, penalty: float = 1.0) -> list[int]:
    """What transformers' greedy `generate` appends to `prompt`."""
    ids = torch.tensor([prompt])
    out = reference(kind).generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        repetition_penalty=penalty,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()


class Clock:
    """Time that passes only when told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.now


class TimedBackend(EagerBackend):
    """A backend whose passes take a fixed time on `clock`: `layer` seconds for each layer run, 5 % more per further token."""

    def __init__(self, model: Any, clock: Clock, layer: float = 1.0) -> None:
        super().__init__(model)
        self.clock, self.layer = clock, layer

    def price(self, count: int, layers: int | None = None) -> float:
        """Seconds of a pass of `count` tokens."""
        return self.layer * (self.layers if layers is None else layers) * (1 + 0.05 * (count - 1))

    def run(self, tokens: Sequence[int], cache: Cache, keep: int | None) -> Tensor:
        """The pass, and its time."""
        gate = self.__dict__.get("gate")
        self.clock.now += self.price(len(tokens), gate.last - gate.first if gate else None)
        return super().run(tokens, cache, keep)


class Whim:
    """A policy of arbitrary legal choices: whatever a real one may come to, and much that none would.

    `prefixes` off keeps all drafts, as acceptance of freely sampled ones demands.
    """

    def __init__(self, seed: int, *, prefixes: bool = True) -> None:
        self._random = np.random.default_rng(seed)
        self._prefixes = prefixes
        self._room = 0
        self.seen: set[str] = set()
        """States that occurred, for a test to check that they all did."""

    def choose(self, candidates: Sequence[DrafterCandidate], context: int, room: int) -> DraftSource | None:
        """Any drafter, also one with nothing to say, or none."""
        self._room = min(room, int(self._random.integers(0, 10)))
        at = int(self._random.integers(0, len(candidates) + 1))
        return candidates[at].origin if at < len(candidates) else None

    def should_draft_more(self, signals: Sequence[float]) -> bool:
        """Most of the time."""
        return len(signals) < self._room and bool(self._random.random() < 0.8)

    def verify_length(self, signals: Sequence[float]) -> int:
        """Any prefix, half of the time all."""
        if not self._prefixes or self._random.random() < 0.5:
            return len(signals)
        return int(self._random.integers(0, len(signals) + 1))

    def learn(self, done: Round) -> None:
        """Only what kind of round it was."""
        drafted = len(done.signals)
        if done.origin is None or not drafted:
            self.seen.add("plain" if done.origin is None else f"{done.origin}: silent")
            return
        sent = "nothing" if not done.submitted else "all" if done.submitted == drafted else "some"
        stayed = "none" if not done.kept else "all" if done.kept == done.submitted else "some"
        self.seen.add(f"{done.origin}: {sent} submitted, {stayed} stayed")


class Bushy(Whim):
    """Arbitrary choices of trees: any number of nodes beside and in the place of arbitrary drafts."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._sizes = np.random.default_rng(seed + 100)
        self.trees = 0

    def survival_of(self, drafts: int) -> Sequence[float]:
        """A guess that leaves room for others."""
        return [0.6 ** (i + 1) for i in range(drafts)]

    def tree_size(self, beliefs: Sequence[float], survival: Sequence[float], context: int) -> int:
        """Any number of them."""
        count = int(self._sizes.integers(0, len(beliefs) + 1))
        self.trees += count > 0
        return count


class Stub(Backend):
    """A backend with no network: `row` maps a prefix to the logits (V,) of what follows, `early` likewise for the exit.

    Two layers, the exit after the first.
    """

    name = "stub"
    precision = "float32"
    layers = 2
    can_rollback = Decision(True, "a list of tokens")
    can_exit = Decision(True, "a list of tokens")

    def __init__(
        self,
        vocab: int,
        row: Callable[[Sequence[int]], Tensor],
        early: Callable[[Sequence[int]], Tensor] | None = None,
        *,
        context: int | None = None,
    ) -> None:
        self.vocab, self.row, self.early, self.context = vocab, row, early or row, context

    def open(self) -> StubSession:
        """A fresh sequence."""
        return StubSession(self)


class StubSession(Session):
    """A sequence in a `Stub`."""

    def __init__(self, backend: Stub) -> None:
        self._backend = backend
        self._tokens: list[int] = []
        self._waiting: list[int] = []

    @property
    def length(self) -> int:
        """See `Session`."""
        return len(self._tokens)

    @property
    def pending(self) -> int:
        """See `Session`."""
        return len(self._waiting)

    def forward(self, tokens: Sequence[int], *, keep: int | None = None) -> Tensor:
        """See `Session`."""
        start = len(self._tokens) + (0 if keep is None else len(tokens) - keep)
        self._tokens.extend(tokens)
        return torch.stack([self._backend.row(self._tokens[: i + 1]) for i in range(start, len(self._tokens))])

    def rollback(self, length: int) -> None:
        """See `Session`."""
        del self._tokens[length:]
        self._waiting.clear()

    def forward_early(self, tokens: Sequence[int], layers: int, *, logits: bool = True) -> Tensor | None:
        """See `Session`."""
        rows = []
        for token in tokens:
            self._waiting.append(token)
            rows.append(self._backend.early([*self._tokens, *self._waiting]))
        return torch.stack(rows) if logits else None

    def complete(self, count: int | None = None) -> Tensor:
        """See `Session`."""
        tokens = self._waiting if count is None else self._waiting[:count]
        self._waiting = []
        return self.forward(tokens)


def scripted(vocab: int, script: Sequence[int], wrong: Sequence[int] = ()) -> Callable[[Sequence[int]], Tensor]:
    """Rows that spell out `script`, prompt included, but for the positions in `wrong`; past its end, token 0."""

    def row(prefix: Sequence[int]) -> Tensor:
        at = len(prefix)
        token = script[at] if at < len(script) else 0
        return torch.nn.functional.one_hot(torch.tensor((token + (at in wrong)) % vocab), vocab) * 9.0

    return row
