"""The real models of `real.py` in every format that a peer reads, made from the published GGUF files.

    python tests/peers/real_models.py [--into FOLDER] [--optimum PYTHON] [NAME…]

`models.py` fetches the files; transformers unpacks each to a Hugging Face folder in bf16; `export.py`, run by PYTHON, exports
that for GenAI. What is there already stays.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from models import MODELS, fetch
from models import folder as usual

EXPORT = Path(__file__).with_name("export.py")


@dataclass(frozen=True)
class Model:
    """A model's file, its weights unpacked to 16 bits, and its exports for GenAI."""

    gguf: Path
    folder: Path
    openvino: Path


def find(name: str, into: Path | None = None) -> Model:
    """Return a model's places, made or not; its file is fetched if need be."""
    place = into or usual()
    gguf = fetch(name, place)
    return Model(gguf, place / name / "bf16", place / name / "openvino")


def unpack(model: Model) -> None:
    """Write the file's values as a Hugging Face folder in bf16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if (model.folder / "tokenizer_config.json").exists():
        return
    place, name = str(model.gguf.parent), model.gguf.name
    tokenizer = AutoTokenizer.from_pretrained(place, gguf_file=name)
    loaded = AutoModelForCausalLM.from_pretrained(place, gguf_file=name, dtype=torch.float32)
    loaded.hf_quantizer = None  # what is written is no longer quantized
    loaded.is_quantized = False
    if hasattr(loaded.config, "quantization_config"):
        del loaded.config.quantization_config
    loaded.to(torch.bfloat16).save_pretrained(model.folder)
    tokenizer.save_pretrained(model.folder)


def main() -> None:
    """Make every format of the models named, by default of the language models."""
    parser = argparse.ArgumentParser(description="Make the formats that the peers read.")
    parser.add_argument("names", nargs="*", default=["smollm2", "gemma3-270m"], help=", ".join(MODELS))
    parser.add_argument("--into", type=Path, default=None)
    parser.add_argument("--optimum", default=sys.executable, metavar="PYTHON", help="of the environment `optimum`")
    given = parser.parse_args()
    for name in given.names:
        model = find(name, given.into)
        unpack(model)
        subprocess.run([given.optimum, str(EXPORT), str(model.folder), str(model.openvino)], check=True)
        sys.stdout.write(f"{model.gguf.parent}\n")


if __name__ == "__main__":
    main()
