"""What starting up may load: help, version and `import dynx` answer before any heavy library would have been read."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support import gguf_files
from support.commands import PROMPT, Result, finish, spawn, train_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

HEAVY = {
    "torch",
    "transformers",
    "diffusers",
    "numpy",
    "PIL",
    "torchmetrics",
    "safetensors",
    "huggingface_hub",
    "tokenizers",
    "rich",
    "psutil",
}
BUDGET = 400
"""Modules after printing help: Python's own and Typer's. A further library would add hundreds."""

LISTED = """
import json, sys
before = set(sys.modules)
{body}
sys.stderr.write(json.dumps(sorted(set(sys.modules) - before)))
"""
COMMAND = "from dynx.cli.main import run; code = run(sys.argv[1:]); assert code == 0"


def loaded(body: str, *arguments: str) -> tuple[str, list[str]]:
    """What was printed, and the modules that running `body` in a fresh interpreter loaded."""
    result = finish(spawn(*arguments, code=LISTED.format(body=body)))
    return result.out, json.loads(result.err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["classify", "--help"],
        ["draw", "--help"],
        ["calibrate", "--help"],
        ["bench", "--help"],
    ],
    ids=" ".join,
)
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    """Asking what there is loads none of the libraries that doing it takes, and no more modules than a budget."""
    out, modules = loaded(COMMAND, *arguments)

    assert out
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()
    assert len(modules) <= BUDGET


def test_importing_dynx_loads_only_dynx() -> None:
    """`import dynx` reads its own file and nothing of anybody else's."""
    _, modules = loaded("import dynx; assert dynx.__version__ and 'load_generator' in dir(dynx)")

    assert [name for name in modules if name.startswith("dynx")] == ["dynx"]
    assert {name.partition(".")[0] for name in modules} & HEAVY == set()
    assert len(modules) <= 20


def test_a_bad_command_line_loads_nothing_heavy() -> None:
    """A mistyped option is told as fast as help is shown."""
    body = "from dynx.cli.main import run; code = run(['generate', '--nope']); assert code == 2; sys.stderr.flush()"
    result = finish(spawn(code=LISTED.format(body=body)))
    *complaint, modules = result.err.splitlines()

    assert complaint[0].startswith("dynx: No such option: --nope")
    assert {name.partition(".")[0] for name in json.loads(modules)} & HEAVY == set()


UNUSED = {
    "sympy",
    "scipy.optimize._optimize",
    "scipy.stats._stats_py",
    "torch._dynamo.convert_frame",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.distributed.tensor",
    "torch.fx.experimental.symbolic_shapes",
    "diffusers.models.transformers.auraflow_transformer_2d",
}
"""Modules that only training and compiling use, each of which takes many others with it."""

WHOLE = """
import json, sys
from dynx.cli import main as program
def leave(code):
    sys.stdout.flush()
    sys.stderr.write("\\n" + json.dumps([code, sorted(sys.modules)]))
program.leave = leave
program.main()
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "Once", "-n", "4"],
        ["classify", "what a day"],
        ["draw", "a heart", "--steps", "2", "-o", "heart.png"],
    ],
    ids=lambda arguments: arguments[0],
)
@pytest.mark.usefixtures("alone")
def test_running_a_shipped_model_loads_nothing_that_compiles_or_trains(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the command line to the product: neither torch's compiler, nor sympy, nor a zoo of models is read."""
    monkeypatch.chdir(tmp_path)
    result = finish(spawn(*arguments, code=WHOLE))
    code, modules = json.loads(result.err.splitlines()[-1])

    assert (code, bool(result.out)) == (0, True)
    assert "torch" in modules
    assert UNUSED & set(modules) == set()


WARM = """
import json, sys
from dynx.cli.main import run
code = run(sys.argv[1:])
assert code == 0, code
sys.stderr.write("\\n" + json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


STARTED = (
    "dynx.runtime.backends.openvino.decoder",
    "dynx.runtime.backends.openvino.kept",
    "dynx.speculation.batching",
    "dynx.speculation.engine",
    "dynx.speculation.exactness",
    "dynx.speculation.own_candidates",
    "dynx.speculation.setup",
    "dynx.speculation.tree_choice",
    "dynx.speculation.verifier",
)
"""Modules that a start on OpenVINO imports, with a profile or without."""


@pytest.mark.parametrize("module", STARTED)
def test_what_a_start_on_openvino_imports_needs_no_torch(module: str) -> None:
    """PyTorch is imported by what uses it, when it is used."""
    _, modules = loaded(f"import {module}")
    assert {"torch", "transformers"} & set(modules) == set()


CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}:{% endif %}"
)


@pytest.mark.parametrize("kind", ["folder", "file", "chat"])
@pytest.mark.filterwarnings("ignore")
def test_a_warm_start_on_openvino_loads_neither_torch_nor_transformers(
    kind: str, cli: Callable[..., Result], tiny_folder: Path, tmp_path: Path
) -> None:
    """The second command on a model takes graph, tokenizer and template from the cache, and writes what the first one wrote."""
    pytest.importorskip("openvino")
    model = tiny_folder
    if kind == "file":
        pytest.importorskip("gguf")
        model = gguf_files.write(tmp_path / "a.gguf", kind="Q8_0", width=64, inner=64, tokenizer=train_tokenizer())
    elif kind == "chat":
        model = shutil.copytree(tiny_folder, tmp_path / "chat")
        (model / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    command = ["generate", "-m", model, PROMPT, "-n", 4, "--backend", "openvino", "--draft", "lookup"]
    command += ["--chat"] * (kind == "chat")
    first = cli(*command)
    second = finish(spawn(*command, code=WARM))

    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.out == first.out
    modules = json.loads(second.err.splitlines()[-1])
    assert {"openvino", "tokenizers"} <= set(modules)
    assert {"torch", "transformers"} & set(modules) == set()
