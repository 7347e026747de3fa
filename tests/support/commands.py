"""What the command-line tests share besides fixtures: results, processes, and a tiny model on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time"
CONTEXT = 160
"""Tokens that the tiny model takes."""

END = "<|end|>"
SENTENCES = [
    "Once upon a time there was a fox who lived in the wood near the old mill.",
    "The miller's daughter had a golden key, and nobody knew what it opened.",
    'She said to the fox: "What will you give me if I let you go?"',
    "The king and the queen had a garden in which a tree bore golden apples.",
]
CHAT = (
    "{% for m in messages %}{% if m.role == 'system' and 'forbidden' in m.content %}{{ raise_exception('no such role') }}"
    "{% endif %}[{{ m.role }}] {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@dataclass(frozen=True)
class Result:
    """What one run of the command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        """The one JSON document on stdout."""
        return parse_json(self.out)

    @property
    def error(self) -> dict[str, Any]:
        """What a failing command says under --json: the JSON document on the last line of stderr."""
        return parse_json(self.err.splitlines()[-1])

    @property
    def documents(self) -> list[dict[str, Any]]:
        """The JSON lines on stdout."""
        return [parse_json(line) for line in self.out.splitlines()]


def checked(result: Result) -> Result:
    """The same, once every JSON document on its streams keeps to its schema and has no key that the schema doesn't describe."""
    from support.keys import complaints

    if wrong := complaints(result.out) + complaints(result.err):
        raise AssertionError("; ".join(wrong))
    return result


def parse_json(text: str) -> dict[str, Any]:
    """Strict JSON: NaN and Infinity are no numbers."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def train_tokenizer(size: int = 400, sentences: list[str] = SENTENCES) -> Any:
    """A byte-level BPE over a few sentences: every text round-trips."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    raw.train_from_iterator(sentences, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=END, clean_up_tokenization_spaces=False)


def write_model(folder: Path, *, drafter: bool = True) -> Path:
    """A sharp-tongued random Llama, in `drafter/` a noisy copy of it that is right now and then."""
    import torch

    from support.models import perturbed, tiny

    tokenizer = train_tokenizer()
    printable = [len(text) > 0 and text.isprintable() and text.isascii() for text in map(tokenizer.decode, range(400))]
    for path, noise in ((folder, 0.0), (folder / "drafter", 0.02))[: 1 + drafter]:
        model = tiny("llama", seed=3, vocab=400, max_position_embeddings=CONTEXT)
        with torch.no_grad():  # only what can be read; the end token would end most answers at once
            model.get_output_embeddings().weight[~torch.tensor(printable)] = 0
        model = perturbed(model, noise) if noise else model
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)
    return folder


def environment(**changes: str | None) -> dict[str, str]:
    """The variables of this process with some changed, and None for those to be left out."""
    merged = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return {name: value for name, value in merged.items() if value is not None}


def spawn(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start `dynx ARGUMENTS…` with pipes on all three streams; `options` are Popen's, `code` replaces `-m dynx`."""
    start = ["-c", options.pop("code")] if "code" in options else ["-m", "dynx"]
    settings: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "env": environment(),
    }
    return subprocess.Popen([sys.executable, *start, *map(str, arguments)], **settings | options)


def finish(process: subprocess.Popen[bytes], stdin: bytes | None = None) -> Result:
    """Wait for a process; its exit code is negative if a signal ended it."""
    out, err = process.communicate(stdin, timeout=120)
    return checked(Result(process.returncode, out.decode(), err.decode()))


def helps(name: str) -> dict[str, str]:
    """What each option of a command is said to do, by its long name, also those that help doesn't list."""
    from typer.main import get_command

    from dynx.cli.app import app

    commands: Any = get_command(app)
    parameters = [p for p in commands.commands[name].params if p.param_type_name == "option"]
    return {next(o for o in p.opts if o.startswith("--")): p.help for p in parameters}
