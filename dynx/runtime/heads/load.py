"""Builds a head's network from its files, for a target that is loaded already."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dynx.errors import ModelError, UnsupportedModelError
from dynx.runtime.heads.formats import layers_read, pickled
from dynx.runtime.heads.networks import (
    ChainHead,
    Joined,
    ParallelHeads,
    PassOn,
    Residual,
    SideBySide,
    eagle3_layer,
    logit_scale,
)
from dynx.runtime.loading.check import check
from dynx.runtime.loading.quiet import loading
from dynx.runtime.loading.unpacked import scheme_of
from dynx.runtime.quantized.unpack import Packed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dynx.runtime.heads.formats import HeadFormat
    from dynx.runtime.heads.networks import Head
    from dynx.runtime.loading.source import Source

EAGLE_NAMES = re.compile(r"(?:model\.)?(midlayer|layers\.0|fc|norm|lm_head|embed_tokens|d2t|t2d|verifier_\w+)(\..+)?")
MEDUSA_NAMES = re.compile(r"(?:medusa_heads?\.|model\.)*(\d+)\.(\d+)\.(?:(linear)\.)?(weight|bias)")


def load_head(
    source: Source, kind: HeadFormat, target: Any, *, allow_pickle: bool = False
) -> tuple[Head, tuple[int, ...]]:
    """Return a head for `target`, an `EagerBackend`, and the layers of it that the head reads.

    Raises ModelError for files that are torn or for another model, UnsupportedModelError for what isn't built here.
    """
    check(source, allow_pickle=allow_pickle)
    dtype = target.model.dtype
    layers = layers_read(kind, source.config(), target.layers)
    if not all(0 <= layer <= target.layers for layer in layers):
        raise ModelError(f"{source.name} reads layer {max(layers)}, and the model has {target.layers}")
    weights = _weights(source, kind, dtype)
    build = {"mtp": _mtp, "eagle": _eagle, "eagle3": _eagle3, "medusa": _medusa}[kind.kind]
    try:
        head = build(source, kind, weights, target, len(layers))
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as e:
        line = (str(e).strip() or type(e).__name__).splitlines()[0][:160]
        raise ModelError(f"{source.name} can't be built as {kind.title} ({line})") from None
    head.to(device=target.device, dtype=dtype).eval().requires_grad_(requires_grad=False)
    if head.ids is not None:
        head.ids = head.ids.to(target.device)
    return head, layers


def _weights(source: Source, kind: HeadFormat, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the head's tensors in `dtype`, without the prefix that they have inside a model."""
    if files := pickled(source.folder):
        found: dict[str, Tensor] = {}
        for file in files:
            try:
                found |= torch.load(file, map_location="cpu", weights_only=True)
            except Exception as e:  # noqa: BLE001 - a pickle that anybody wrote
                line = (str(e).strip() or type(e).__name__).splitlines()[0][:120]
                raise ModelError(f"{file} can't be read ({line})") from None
        return {name: each.to(dtype) if each.is_floating_point() else each for name, each in found.items()}
    prefix = kind.prefix

    def renamed(name: str) -> str | None:
        return name[len(prefix) :] if name.startswith(prefix) else None

    try:
        packed = Packed(source.folder, scheme_of(source), renamed)
    except UnsupportedModelError as e:
        raise UnsupportedModelError(f"{source.name} can't be unpacked: {e}", hint=e.hint) from None
    try:
        return dict(packed.tensors(dtype))
    finally:
        packed.close()


def _taken(source: Source, weights: Mapping[str, Tensor], module: nn.Module, names: Mapping[str, str]) -> None:
    """Load a module's tensors: `names` gives the beginning of each name by that in the files. Raises ModelError."""
    state = {}
    for old, new in names.items():
        for name, tensor in weights.items():
            if name.startswith(old):
                state[new + name[len(old) :]] = tensor
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name in state and state[name].shape != tensor.shape:
            raise ModelError(
                f"{source.name} isn't for this model: {name} has shape {tuple(state[name].shape)}, {tuple(tensor.shape)} expected"
            )
    if missing := sorted(set(wanted) - set(state)):
        raise ModelError(f"{source.name} lacks {len(missing)} of its weights, among them {missing[0]}")
    module.load_state_dict({name: state[name] for name in wanted})


def _shared(target: Any) -> dict[str, Any]:
    """Return what heads share with their target."""
    model = target.model
    return {
        "embeddings": model.get_input_embeddings(),
        "vocab": target.vocab,
        "scale": logit_scale(target.config),
    }


def _llama(source: Source, weights: Mapping[str, Tensor], layer: str) -> Any:
    """Return a decoder of one Llama layer by the head's configuration, without values."""
    from transformers import LlamaConfig, LlamaModel

    settings = source.config()
    settings = {**settings, **(settings.get("transformer_layer_config") or {})}
    if int(settings.get("num_hidden_layers") or 1) != 1 or any(".layers.1." in f".{name}" for name in weights):
        raise UnsupportedModelError(f"{source.name} has several layers; heads of one layer are supported")
    left_out = (
        "architectures",
        "model_type",
        "transformer_layer_config",
        "quantization_config",
        "pad_token_id",
        "layer_types",
    )
    settings = {name: value for name, value in settings.items() if name not in left_out}
    settings |= {"num_hidden_layers": 1, "vocab_size": 2, "attention_bias": f"{layer}self_attn.q_proj.bias" in weights}
    settings |= {"bos_token_id": None, "eos_token_id": None}
    config = LlamaConfig(**settings)
    config._attn_implementation = "sdpa"
    body = LlamaModel(config)
    body.embed_tokens = PassOn()
    return body


def _without_bias(body: Any, weights: Mapping[str, Tensor], layer: str) -> None:
    """Take the output projection's bias away where the head has biases on the inputs alone."""
    attention = body.layers[0].self_attn
    if attention.o_proj.bias is not None and f"{layer}self_attn.o_proj.bias" not in weights:
        attention.o_proj = nn.Linear(attention.o_proj.in_features, attention.o_proj.out_features, bias=False)


def _known(source: Source, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return EAGLE weights by one spelling. Raises UnsupportedModelError for names that no layer of theirs has."""
    out = {}
    for name, tensor in weights.items():
        found = EAGLE_NAMES.fullmatch(name)
        if found is None:
            raise UnsupportedModelError(f"{source.name} has a part that EAGLE heads don't have: {name}")
        out[("layers.0" if found[1] == "midlayer" else found[1]) + (found[2] or "")] = tensor
    return out


def _embedding(weights: Mapping[str, Tensor], target: Any, source: Source, size: int) -> nn.Module:
    """Return the head's own embeddings, else the target's. Raises ModelError where neither fits."""
    own, shared = weights.get("embed_tokens.weight"), target.model.get_input_embeddings()
    if own is not None:
        if len(own) < target.vocab:
            raise ModelError(
                f"{source.name} isn't for this model: it knows {len(own)} tokens, and {target.vocab} are needed"
            )
        table = nn.Embedding(own.shape[0], own.shape[1], device="meta")
        table.weight = nn.Parameter(own, requires_grad=False)
        return table
    if shared.weight.shape[-1] != size:
        raise ModelError(
            f"{source.name} isn't for this model: it reads embeddings of {size} numbers, the model's have "
            f"{shared.weight.shape[-1]}"
        )
    return shared  # type: ignore[no-any-return]


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    out = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    out.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        out.bias = nn.Parameter(bias, requires_grad=False)
    return out


def _own_output(source: Source, weights: Mapping[str, Tensor], target: Any) -> tuple[nn.Module, Tensor | None]:
    """Return the head's output head and the target's token of each of its rows; the target's own head where it has none."""
    own, offsets = weights.get("lm_head.weight"), weights.get("d2t")
    if own is None:
        return target.model.get_output_embeddings(), None
    if offsets is None:
        if len(own) < target.vocab:
            raise ModelError(
                f"{source.name} isn't for this model: it drafts {len(own)} tokens, and {target.vocab} are known"
            )
        return _linear(own[: target.vocab]), None
    ids = torch.arange(len(offsets)) + offsets.long()
    if len(ids) != len(own) or int(ids.min()) < 0 or int(ids.max()) >= target.vocab:
        raise ModelError(
            f"{source.name} isn't for this model: d2t maps {len(ids)} of {len(own)} draft tokens up to {int(ids.max())}, and the "
            f"model has {target.vocab}"
        )
    return _linear(own), ids


def _eagle(source: Source, _kind: HeadFormat, found: Mapping[str, Tensor], target: Any, _count: int) -> ChainHead:
    weights = _known(source, found)
    body = _llama(source, weights, "layers.0.")
    size = int(body.config.hidden_size)
    if "layers.0.input_layernorm.weight" not in weights:
        body.layers[0].input_layernorm = PassOn()
    if "norm.weight" not in weights:
        body.norm = PassOn()
    _without_bias(body, weights, "layers.0.")
    _taken(source, weights, body, {"layers.0.": "layers.0.", "norm.": "norm."})
    states = int(target.model.get_input_embeddings().weight.shape[-1])
    fc = weights.get("fc.weight")
    if fc is None or fc.shape != (size, size + states):
        raise ModelError(
            f"{source.name} isn't for this model: it reads states of {0 if fc is None else fc.shape[1] - size} numbers, the "
            f"model's have {states}"
        )
    output, ids = _own_output(source, weights, target)
    return ChainHead(
        body,
        PassOn(),
        Joined(PassOn(), PassOn(), _linear(fc, weights.get("fc.bias"))),
        PassOn(),
        embed=_embedding(weights, target, source, size),
        output=output,
        ids=ids,
        **_shared(target),
    )


def _eagle3(source: Source, _kind: HeadFormat, found: Mapping[str, Tensor], target: Any, count: int) -> ChainHead:
    weights = _known(source, found)
    body = _llama(source, weights, "layers.0.")
    size = int(body.config.hidden_size)
    body.layers[0] = eagle3_layer(body.config)
    norm, body.norm = body.norm, PassOn()
    _without_bias(body, weights, "layers.0.")
    _taken(source, weights, body, {"layers.0.": "layers.0."})
    _taken(source, weights, norm, {"norm.": ""})
    states = count * int(target.model.get_input_embeddings().weight.shape[-1])
    fc = weights.get("fc.weight")
    read = size if fc is None else int(fc.shape[1])
    if read != states or (fc is not None and len(fc) != size):
        raise ModelError(
            f"{source.name} isn't for this model: it reads {read} numbers of a token's states, the model has {states}"
        )
    output, ids = _own_output(source, weights, target)
    return ChainHead(
        body,
        PassOn() if fc is None else _linear(fc, weights.get("fc.bias")),
        SideBySide(),
        norm,
        embed=_embedding(weights, target, source, size),
        output=output,
        ids=ids,
        **_shared(target),
    )


def _mtp(source: Source, kind: HeadFormat, weights: Mapping[str, Tensor], target: Any, _count: int) -> ChainHead:
    """Build the first layer of a model's multi-token prediction as a decoder of the model's own class."""
    config = _one_layer(target.config)
    body_class = type(getattr(target.model, target.model.base_model_prefix))
    deepseek = "eh_proj.weight" in weights
    apart = (
        {"fc.weight": "eh_proj.weight", "embedding": "enorm.weight", "states": "hnorm.weight"}
        if deepseek
        else {
            "fc.weight": "fc.weight",
            "embedding": "pre_fc_norm_embedding.weight",
            "states": "pre_fc_norm_hidden.weight",
        }
    )
    if missing := [name for name in apart.values() if name not in weights]:
        raise ModelError(f"{source.name} lacks {len(missing)} of its weights, among them {kind.prefix}{missing[0]}")
    state = {"embed_tokens.weight": torch.zeros(2, config.hidden_size, dtype=target.model.dtype)}
    for name, tensor in weights.items():
        if deepseek and not name.startswith(("eh_proj.", "enorm.", "hnorm.", "embed_tokens.", "shared_head.")):
            state[f"layers.0.{name}"] = tensor
        elif not deepseek and name.startswith("layers.0."):
            state[name] = tensor
    final = weights.get("shared_head.norm.weight" if deepseek else "norm.weight")
    if final is not None:
        state["norm.weight"] = final
    with loading(source.folder, trusted=False):
        body, seen = body_class.from_pretrained(
            None, config=config, state_dict=state, dtype=target.model.dtype, output_loading_info=True
        )
    if missing := sorted(seen["missing_keys"]):
        raise ModelError(f"{source.name} lacks {len(missing)} of its weights, among them {missing[0]}")
    body.set_attn_implementation(target.model.config._attn_implementation or "sdpa")
    norms = [copy.deepcopy(body.norm), copy.deepcopy(body.norm)]
    for norm, name in zip(norms, ("embedding", "states"), strict=True):
        _taken(source, weights, norm, {apart[name]: "weight"})
    body.embed_tokens = PassOn()
    return ChainHead(
        body,
        PassOn(),
        Joined(norms[0], norms[1], _linear(weights[apart["fc.weight"]])),
        PassOn(),
        embed=target.model.get_input_embeddings(),
        output=target.model.get_output_embeddings(),
        **_shared(target),
    )


def _one_layer(config: Any) -> Any:
    """Return the configuration of a decoder of one layer, of full attention, as a model's multi-token prediction has it."""
    if getattr(config, "num_mtp_layers", None) and hasattr(config, "get_mtp_config"):
        out = config.get_mtp_config()
    else:
        out = copy.deepcopy(config)
        if getattr(out, "layer_types", None):
            out.layer_types = ["full_attention"]
    out.num_hidden_layers = 1
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(out, name, None):
            setattr(out, name, list(getattr(out, name))[:1])
    if hasattr(out, "first_k_dense_replace"):
        out.first_k_dense_replace = 0
    out.vocab_size, out.pad_token_id = 2, None
    return out


def _medusa(
    source: Source, _kind: HeadFormat, weights: Mapping[str, Tensor], target: Any, _count: int
) -> ParallelHeads:
    parts: dict[int, dict[int, dict[str, Tensor]]] = {}
    for name, tensor in weights.items():
        found = MEDUSA_NAMES.fullmatch(name)
        if found is None:
            raise UnsupportedModelError(f"{source.name} has a part that Medusa heads don't have: {name}")
        key = f"{found[3]}.{found[4]}" if found[3] else found[4]
        parts.setdefault(int(found[1]), {}).setdefault(int(found[2]), {})[key] = tensor
    states = int(target.model.get_input_embeddings().weight.shape[-1])
    heads: list[nn.Module] = []
    for number, blocks in sorted(parts.items()):
        *inner, last = [each for _, each in sorted(blocks.items())]
        if number != len(heads) or "weight" not in last or any("linear.weight" not in each for each in inner):
            raise ModelError(f"{source.name} lacks some of head {min(number, len(heads))}'s weights")
        modules: list[nn.Module] = []
        for block in inner:
            residual = Residual(states)
            _taken(source, block, residual, {"": ""})
            modules.append(residual)
        if last["weight"].shape[1] != states or len(last["weight"]) < target.vocab:
            raise ModelError(
                f"{source.name} isn't for this model: its heads have shape {tuple(last['weight'].shape)}, "
                f"({target.vocab}, {states}) expected"
            )
        heads.append(nn.Sequential(*modules, _linear(last["weight"][: target.vocab])))
    if not heads:
        raise ModelError(f"{source.name} has no heads")
    return ParallelHeads(heads, embeddings=target.model.get_input_embeddings(), vocab=target.vocab)
