"""How a folder's weights are quantized, by its configuration: read without loading anything."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dynx.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

MODELOPT_FILE = "hf_quant_config.json"

TITLES = {
    "gptq": "GPTQ",
    "awq": "AWQ",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
    "fp8": "FP8",
    "fbgemm_fp8": "FP8 (FBGEMM)",
    "modelopt": "ModelOpt",
    "mxfp4": "MXFP4",
    "torchao": "torchao",
    "quanto": "Quanto",
    "hqq": "HQQ",
    "aqlm": "AQLM",
    "vptq": "VPTQ",
    "eetq": "EETQ",
    "higgs": "HIGGS",
    "spqr": "SpQR",
    "auto-round": "AutoRound",
    "quark": "Quark",
    "bitnet": "BitNet",
    "fp_quant": "FP-Quant",
}

PACKAGES = {
    "torchao": "torchao",
    "quanto": "optimum-quanto",
    "hqq": "hqq",
    "aqlm": "aqlm",
    "vptq": "vptq",
    "eetq": "kernels",
    "higgs": "flute-kernel",
    "spqr": "spqr_quant",
    "auto-round": "auto-round",
    "quark": "amd-quark",
    "fp_quant": "fp_quant",
    "gptq": "gptqmodel optimum",
    "awq": "gptqmodel",
    "bitsandbytes": "bitsandbytes",
    "compressed-tensors": "compressed-tensors",
}
"""What transformers needs for each."""

UNPACKED = frozenset({"gptq", "awq", "bitsandbytes", "compressed-tensors", "fp8", "fbgemm_fp8", "modelopt", "mxfp4"})
"""Methods whose weights dynx can unpack by itself."""

COMPRESSED_FORMATS = frozenset(
    {
        "pack-quantized",
        "int-quantized",
        "naive-quantized",
        "float-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mixed-precision",
        "dense",
    }
)
"""Formats of compressed-tensors that can be unpacked."""


@dataclass(frozen=True)
class Scheme:
    """A quantization method and its settings, flattened to what the layouts read."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name of the method, with the bits of a weight where the settings say it."""
        title = TITLES.get(self.method, self.method)
        bits = self.settings.get("bits") or self.settings.get("num_bits")
        return f"{title}, {bits} bits" if isinstance(bits, int) else title

    @property
    def unpackable(self) -> bool:
        """Whether dynx can unpack the weights."""
        return self.method in UNPACKED

    @property
    def package(self) -> str | None:
        """What to install for transformers to run it."""
        return PACKAGES.get(self.method)


def read_scheme(folder: Path, config: Mapping[str, Any]) -> Scheme | None:
    """Return how the folder's weights are quantized by its config.json or `hf_quant_config.json`, or None.

    Raises UnsupportedModelError for a variant of a known method that can't be unpacked, with its name.
    """
    inner = config.get("text_config")
    given = config.get("quantization_config") or config.get("compression_config")
    if given is None and isinstance(inner, dict):
        given = inner.get("quantization_config")
    if isinstance(given, dict):
        return _from_transformers(given)
    file = folder / MODELOPT_FILE
    if not file.is_file():
        return None
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))["quantization"]
        algorithm = facts.get("quant_algo")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UnsupportedModelError(f"{file} can't be read") from None
    return None if algorithm is None else _from_modelopt(str(algorithm))


def _from_modelopt(algorithm: str) -> Scheme:
    if algorithm not in ("FP8", "NVFP4"):
        raise UnsupportedModelError(
            f"its weights are quantized by ModelOpt as {algorithm}; FP8 and NVFP4 can be unpacked"
        )
    return Scheme("modelopt", {"num_bits": 8 if algorithm == "FP8" else 4})


def _from_transformers(given: Mapping[str, Any]) -> Scheme:
    method = str(given.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in given else "compressed-tensors"))
    method = {"sparseml": "compressed-tensors", "gptqmodel": "gptq"}.get(method, method)
    if method == "modelopt":
        return _from_modelopt(str(given.get("quant_algo")))
    if method == "gptq":
        _one_of("GPTQ", "bits", given.get("bits"), (2, 3, 4, 8))
        _one_of("GPTQ", "checkpoint_format", given.get("checkpoint_format", "gptq"), ("gptq", "gptq_v2"))
    elif method == "awq":
        bits = given.get("bits", given.get("w_bit", 4))
        _one_of("AWQ", "bits", bits, (4,))
        _one_of("AWQ", "version", str(given.get("version", "gemm")).lower(), ("gemm",))
        return Scheme(method, {**given, "bits": bits})
    elif method == "bitsandbytes":
        return Scheme(method, {**given, "bits": 4 if given.get("load_in_4bit") else 8})
    elif method == "compressed-tensors":
        return Scheme(method, _of_groups(given))
    elif method == "mxfp4":
        return Scheme(method, {**given, "bits": 4})
    return Scheme(method, given)


def _one_of(title: str, setting: str, value: Any, known: tuple[Any, ...]) -> None:
    if value not in known:
        words = ", ".join(map(str, known))
        raise UnsupportedModelError(f"its weights are in {title} with {setting} {value}; unpacked are {words}")


def _of_groups(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of compressed-tensors: those of its first group of modules, and all widths that occur."""
    kind = str(given.get("format") or "dense")
    groups = [g for g in (given.get("config_groups") or {}).values() if isinstance(g, dict)]
    for each in (kind, *(g["format"] for g in groups if g.get("format"))):
        if each not in COMPRESSED_FORMATS:
            raise UnsupportedModelError(
                f"its weights are in the format {each} of compressed-tensors, which can't be unpacked"
            )
    sparse = (given.get("sparsity_config") or {}).get("format", "dense")
    if sparse not in ("dense", None):
        raise UnsupportedModelError(f"its weights are sparse ({sparse} of compressed-tensors), which can't be unpacked")
    if given.get("transform_config"):
        raise UnsupportedModelError(
            "its weights are rotated (transform_config of compressed-tensors), which can't be undone"
        )
    weights = [g["weights"] for g in groups if isinstance(g.get("weights"), dict)]
    widths = sorted({int(w["num_bits"]) for w in weights if w.get("num_bits")})
    first = weights[0] if weights else {}
    return {"format": kind, "widths": widths, "num_bits": widths[0] if len(widths) == 1 else None} | {
        "block_structure": first.get("block_structure"),
        "activations": any(g.get("input_activations") for g in groups),
    }
