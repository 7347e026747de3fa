"""The networks of draft heads.

A `ChainHead` drafts token after token: for each it takes the token before and the hidden states from which the target would have
given that one, and returns states of its own, which serve in the place of the target's for the next. A `ParallelHeads` has one
head for each token to come, all of which read the target's last states.

Bodies are transformers' own decoders, called with embeddings: masks, positions and caches come from them.

Letters in shapes: T tokens, F features of the target, D hidden size of the head, V vocabulary of the target, K of the drafts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.runtime.backends.eager import CounterCache, cache_argument
from dynx.runtime.backends.trimmed import LEFT_OUT_LOGIT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

READ_CHUNK_TOKENS = 1024
"""Tokens of one call, which bounds the memory of masks."""


class Head(nn.Module):
    """What all heads have: an output head that may be cut, and the target's embeddings, which show a cut head what is read."""

    output: nn.Module
    embeddings: nn.Module
    scale: Callable[[Tensor], Tensor]
    """What the target does to the logits of its output head."""
    ids: Tensor | None = None
    """The target's token (K,) of each draft token, where the head has a vocabulary of its own."""

    def get_output_embeddings(self) -> nn.Module | None:
        """Return the output head if it has a row for each token of the target; transformers' name."""
        return self.output if self.ids is None else None

    def set_output_embeddings(self, head: nn.Module) -> None:
        """Replace the output head; transformers' name."""
        self.output = head

    def get_input_embeddings(self) -> nn.Module:
        """Return the target's embeddings; transformers' name."""
        return self.embeddings

    def _whole(self, logits: Tensor, vocab: int) -> Tensor:
        """Return logits (T, V) over the target's tokens of those (T, K) over the head's own."""
        if self.ids is None:
            return logits
        out = logits.new_full((len(logits), vocab), LEFT_OUT_LOGIT)
        out[:, self.ids] = logits
        return out


class ChainHead(Head):
    """A head whose drafts depend on each other."""

    def __init__(
        self,
        body: Any,
        fuse: nn.Module,
        joined: Callable[[Tensor, Tensor], Tensor],
        norm: nn.Module,
        *,
        embed: nn.Module,
        output: nn.Module,
        embeddings: nn.Module,
        scale: Callable[[Tensor], Tensor],
        vocab: int,
        ids: Tensor | None = None,
    ) -> None:
        """`fuse` makes states (T, D) of the target's features (T, F); `joined` makes the body's input of embeddings and states.

        The body's output are the states for the next token; `norm` and `output` make logits of them.
        """
        super().__init__()
        self.body, self.fuse, self.norm = body, fuse, norm
        self.embed, self.output, self.embeddings = embed, output, embeddings
        self.joined, self.scale, self.vocab, self.ids = joined, scale, vocab, ids
        self._cache_name = cache_argument(body)

    def open(self) -> CounterCache:
        """Return an empty cache."""
        return CounterCache(int(self.body.config.num_hidden_layers))

    def forward(self, tokens: Sequence[int], states: Tensor, cache: CounterCache, **arguments: Any) -> Tensor:
        """Run `tokens` (T,), each with the states (T, D) before it, after what the cache holds; returns states (T, D)."""
        out = []
        for start in range(0, len(tokens), READ_CHUNK_TOKENS):
            part = torch.tensor(list(tokens[start : start + READ_CHUNK_TOKENS]), device=states.device)
            rows = states[start : start + READ_CHUNK_TOKENS]
            inputs = self.joined(self.embed(part).to(rows.dtype), rows)[None]
            found = self.body(inputs_embeds=inputs, use_cache=True, **{self._cache_name: cache}, **arguments)
            out.append(found.last_hidden_state[0])
            cache.position += len(part)
        return out[0] if len(out) == 1 else torch.cat(out)

    def logits(self, states: Tensor) -> Tensor:
        """Return logits (T, V) after states (T, D)."""
        return self._whole(self.scale(self.output(self.norm(states))), self.vocab)


class ParallelHeads(Head):
    """Heads that all read the target's last states: the first drafts the token after the one that the target gives, and so on."""

    def __init__(
        self,
        heads: Sequence[nn.Module],
        *,
        embeddings: nn.Module,
        vocab: int,
    ) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)
        self.embeddings, self.vocab = embeddings, vocab

    def get_output_embeddings(self) -> nn.Module | None:
        """Return None: each head has one of its own."""
        return None

    def logits(self, states: Tensor, number: int) -> Tensor:
        """Return the logits (T, V) of head `number` after the target's states (T, D)."""
        out: Tensor = self.heads[number](states)
        return out


class Residual(nn.Module):
    """A block of a Medusa head: x + SiLU(W x + b)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, size)

    def forward(self, states: Tensor) -> Tensor:
        """Take and return states (T, D)."""
        return states + nn.functional.silu(self.linear(states))


class Joined(nn.Module):
    """Makes the body's input (T, D) of embeddings and states: both normalised, side by side, through a linear layer."""

    def __init__(self, embedding_norm: nn.Module, state_norm: nn.Module, linear: nn.Module) -> None:
        super().__init__()
        self.embedding_norm, self.state_norm, self.linear = embedding_norm, state_norm, linear

    def forward(self, embeddings: Tensor, states: Tensor) -> Tensor:
        """Take embeddings (T, D) and states (T, D)."""
        both = torch.cat([self.embedding_norm(embeddings), self.state_norm(states)], dim=-1)
        out: Tensor = self.linear(both)
        return out


class SideBySide(nn.Module):
    """Makes the body's input (T, 2D) of embeddings and states as they are."""

    def forward(self, embeddings: Tensor, states: Tensor) -> Tensor:
        """Take embeddings (T, D) and states (T, D)."""
        return torch.cat([embeddings, states], dim=-1)


class PassOn(nn.Module):
    """Stands where a body's norm would be, and in place of layers that a head lacks."""

    def forward(self, states: Tensor) -> Tensor:
        """Return the states."""
        return states


def eagle3_layer(config: Any) -> nn.Module:
    """Return the decoder layer of an EAGLE-3 head: its attention reads embeddings and states (…, 2D) side by side."""
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm

    class Eagle3Layer(LlamaDecoderLayer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(config, 0)
            for name in ("q_proj", "k_proj", "v_proj"):
                old = getattr(self.self_attn, name)
                wide = nn.Linear(2 * config.hidden_size, old.out_features, bias=old.bias is not None)
                setattr(self.self_attn, name, wide)
            self.hidden_norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
            self.norm_first = bool(getattr(config, "norm_before_residual", False))

        def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            embeddings, states = hidden_states.chunk(2, dim=-1)
            normed = self.hidden_norm(states)
            rest = normed if self.norm_first else states
            both = torch.cat([self.input_layernorm(embeddings), normed], dim=-1)
            states = rest + self.self_attn(both, *args, **kwargs)[0]
            out: Tensor = states + self.mlp(self.post_attention_layernorm(states))
            return out

    return Eagle3Layer()


def logit_scale(config: Any) -> Callable[[Tensor], Tensor]:
    """Return what a model does to the logits of its output head, by the settings that transformers' models have for it."""
    divisor = getattr(config, "logits_scaling", None) or getattr(config, "logits_mup_width_multiplier", None)
    factor, cap = getattr(config, "logit_scale", None), getattr(config, "final_logit_softcapping", None)

    def scaled(logits: Tensor) -> Tensor:
        if divisor:
            logits = logits / divisor
        if factor:
            logits = logits * factor
        return logits if not cap else torch.tanh(logits / cap) * cap

    return scaled
