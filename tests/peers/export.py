"""Export a language model to OpenVINO's format for GenAI, with its tokenizer: 16 bits, and NNCF's int8 and int4 of it.

    python tests/peers/export.py MODEL OUT [16] [8] [4]

Runs in the environment `optimum` that `environment.sh` makes. MODEL is a Hugging Face folder; OUT gets a folder for each width:
`16`, `8` and `4`. The widths are those of weights; GenAI chooses the arithmetic when it loads them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

SETTINGS: dict[int, dict[str, Any]] = {8: {"bits": 8}, 4: {"bits": 4, "sym": False, "group_size": 64, "ratio": 1.0}}
"""Optimum's settings of NNCF by the width of weights; groups of 64, as rows of small models are no multiples of 128."""


def export(model: Path, place: Path, bits: int) -> None:
    """Write one width; an export that is there stays."""
    from openvino import save_model
    from openvino_tokenizers import convert_tokenizer
    from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig
    from transformers import AutoTokenizer

    if (place / "openvino_detokenizer.xml").exists():
        return
    config = OVWeightQuantizationConfig(**SETTINGS[bits]) if bits in SETTINGS else None
    exported = OVModelForCausalLM.from_pretrained(
        model, export=True, compile=False, load_in_8bit=False, quantization_config=config
    )
    exported.save_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(place)
    converted = convert_tokenizer(tokenizer, with_detokenizer=True)
    for each, name in zip(converted, ("tokenizer", "detokenizer"), strict=True):
        save_model(each, place / f"openvino_{name}.xml")


def main() -> None:
    """Export each width that is asked for."""
    parser = argparse.ArgumentParser(description="Export a model for OpenVINO GenAI.")
    parser.add_argument("model", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("bits", type=int, nargs="*", default=[16, 8, 4])
    given = parser.parse_args()
    for bits in given.bits:
        export(given.model, given.out / str(bits), bits)
        sys.stdout.write(f"{given.out / str(bits)}\n")


if __name__ == "__main__":
    main()
