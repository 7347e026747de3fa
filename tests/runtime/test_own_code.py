"""Code in a model's folder: never run and never asked about, whatever stands on stdin; run when its user says so."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from support import pipelines
from support.classifier_folders import write_image_classifier, write_text_classifier
from support.commands import PROMPT, environment

import dynx
from dynx.cli.remedy import calibrate_command
from dynx.errors import ModelError
from dynx.runtime import own_code
from dynx.runtime.hashing import model_hash
from dynx.runtime.loading import find
from dynx.speculation.plan import GeneratorRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.cli_fixtures import Result

    Cli = Callable[..., Result]

CODE = """
from pathlib import Path
Path({mark!r}).touch()
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast, ViTConfig, ViTForImageClassification, ViTImageProcessor

class OwnLlamaConfig(LlamaConfig):
    model_type = "own_llama"

class OwnLlama(LlamaForCausalLM):
    config_class = OwnLlamaConfig

class OwnBertConfig(BertConfig):
    model_type = "own_bert"

class OwnBert(BertForSequenceClassification):
    config_class = OwnBertConfig

class OwnViTConfig(ViTConfig):
    model_type = "own_vit"

class OwnViT(ViTForImageClassification):
    config_class = OwnViTConfig

class OwnTokenizer(PreTrainedTokenizerFast):
    pass

class OwnProcessor(ViTImageProcessor):
    pass
"""
PIPELINE_CODE = """
from pathlib import Path
Path({mark!r}).touch()
from diffusers import DDIMScheduler, StableDiffusionPipeline

class OwnPipeline(StableDiffusionPipeline):
    pass

class OwnScheduler(DDIMScheduler):
    pass
"""


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file's keys."""
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def own_tokenizer(folder: Path) -> None:
    edit(
        folder / "tokenizer_config.json",
        tokenizer_class="OwnTokenizer",
        auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]},
    )


def own_model(folder: Path, kind: str, loader: str) -> None:
    names = {"AutoConfig": f"own.Own{kind}Config", loader: f"own.Own{kind}"}
    edit(folder / "config.json", model_type=f"own_{kind.lower()}", auto_map=names)


def own_processor(folder: Path) -> None:
    edit(
        folder / "preprocessor_config.json",
        image_processor_type="OwnProcessor",
        auto_map={"AutoImageProcessor": "own.OwnProcessor"},
    )


def own_pipeline(folder: Path) -> None:
    edit(folder / "model_index.json", _class_name=["own", "OwnPipeline"])


def nameless_pipeline(folder: Path) -> None:
    (folder / "own.py").rename(folder / "None.py")


def own_scheduler(folder: Path) -> None:
    shutil.move(folder / "own.py", folder / "scheduler" / "own.py")
    edit(folder / "model_index.json", scheduler=["own", "OwnScheduler"])


def own_text_part(folder: Path) -> None:
    """A component that transformers would load by the code in its folder, and ask about."""
    from transformers import AutoTokenizer, CLIPImageProcessor, CLIPProcessor

    place = folder / "feature_extractor"
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    CLIPProcessor(CLIPImageProcessor(size=16, crop_size=16), tokenizer).save_pretrained(place)
    (place / "own.py").write_text(CODE.format(mark=str(mark_of(folder))), "utf-8")
    own_tokenizer(place)
    edit(folder / "model_index.json", feature_extractor=["transformers", "CLIPProcessor"])


def mark_of(folder: Path) -> Path:
    """What exists once a folder's code has run."""
    return folder.with_suffix(".mark")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> SimpleNamespace:
    """A folder of each task, all of transformers' or diffusers' own classes."""
    root = tmp_path_factory.mktemp("own")
    write_text_classifier(root / "texts", "llama")  # transformers has no tokenizer class for these
    write_text_classifier(root / "bert")
    write_image_classifier(root / "pictures")
    pipelines.stable_diffusion().save_pretrained(root / "pipeline")
    Image.new("RGB", (40, 30), "red").save(root / "red.png")
    return SimpleNamespace(
        generate=tiny_folder,
        texts=root / "texts",
        bert=root / "bert",
        pictures=root / "pictures",
        draw=root / "pipeline",
        picture=root / "red.png",
    )


@pytest.fixture
def own(models: SimpleNamespace, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of a folder with code in it, named as the changes to the folder say."""

    def make(task: str, *changes: Callable[[Path], None]) -> Path:
        folder = Path(shutil.copytree(getattr(models, task), tmp_path / task, ignore=shutil.ignore_patterns("drafter")))
        code = PIPELINE_CODE if task == "draw" else CODE
        (folder / "own.py").write_text(code.format(mark=str(mark_of(folder))), "utf-8")
        for change in changes:
            change(folder)
        return folder

    return make


def llama(folder: Path) -> None:
    own_model(folder, "Llama", "AutoModelForCausalLM")


def bert(folder: Path) -> None:
    own_model(folder, "Bert", "AutoModelForSequenceClassification")


def vit(folder: Path) -> None:
    own_model(folder, "ViT", "AutoModelForImageClassification")


DOORS = [
    ("generate", own_tokenizer),
    ("generate", llama),
    ("texts", own_tokenizer),
    ("bert", bert),
    ("pictures", own_processor),
    ("pictures", vit),
    ("draw", own_pipeline),
    ("draw", nameless_pipeline),
    ("draw", own_scheduler),
    ("draw", own_text_part),
]
"""Every place at which a library looks for code of the folder's own, by task."""


def arguments(task: str, folder: Path, models: SimpleNamespace) -> list[object]:
    """The command that opens a folder of that task."""
    return {
        "generate": ["generate", "-m", folder, PROMPT, "-n", 4],
        "texts": ["classify", "-m", folder, "a fine day"],
        "bert": ["classify", "-m", folder, "a fine day"],
        "pictures": ["classify", "-m", folder, models.picture],
        "draw": ["draw", "-m", folder, "a red cat", "--steps", 4, "--seed", 1, "-o", folder.with_suffix(".png")],
    }[task]


@pytest.mark.parametrize(("task", "change"), DOORS, ids=lambda v: getattr(v, "__name__", v))
def test_code_never_runs_unasked(
    cli: Cli, own: Callable[..., Path], models: SimpleNamespace, task: str, change: Callable[[Path], None]
) -> None:
    """At each door, with an answer to the libraries' question on stdin: a refusal on stderr that names the option."""
    folder = own(task, change)
    result = cli(*arguments(task, folder, models), stdin=b"y\n" * 9)

    assert not mark_of(folder).exists()
    assert (result.code, result.out) == (1, "")
    assert "needs code from its folder, which isn't run" in result.err
    assert "--trust-remote-code" in result.err
    assert "[y/N]" not in result.err


@pytest.mark.parametrize("command", ["calibrate", "bench"])
@pytest.mark.parametrize(("task", "change"), DOORS, ids=lambda v: getattr(v, "__name__", v))
def test_measuring_runs_no_code_either(
    cli: Cli, own: Callable[..., Path], tmp_path: Path, command: str, task: str, change: Callable[[Path], None]
) -> None:
    """The two commands that take models of every task refuse in the same words."""
    folder = own(task, change)
    data = tmp_path / "data"
    if task == "pictures":
        data.mkdir()
        for i in range(3):
            Image.new("RGB", (40, 30), (80 * i, 0, 0)).save(data / f"{i}.png")
    else:
        data.write_text("a fine day\na dull film\nthe end\n", "utf-8")
    result = cli(command, "-m", folder, "--data", data, stdin=b"y\n" * 9)

    assert not mark_of(folder).exists()
    assert result.code == 1
    assert "needs code from its folder, which isn't run" in result.err


def test_lines_are_prompts_and_no_answers(cli: Cli, own: Callable[..., Path]) -> None:
    """A line `y` that is piped in is a prompt, and a draft model's folder is as little trusted as the model's."""
    folder = own("generate", own_tokenizer)
    for model in (["-m", folder], ["-m", find("story").folder, "--draft", folder]):
        result = cli("generate", *model, "--lines", "-n", 2, stdin=b"y\ny\n")

        assert not mark_of(folder).exists()
        assert result.code == 1


@pytest.mark.parametrize(("task", "change"), DOORS, ids=lambda v: getattr(v, "__name__", v))
def test_the_library_runs_no_code(own: Callable[..., Path], task: str, change: Callable[[Path], None]) -> None:
    """The functions of the Python side raise ModelError."""
    folder = own(task, change)
    load = {"generate": dynx.load, "draw": dynx.load_artist}.get(task, dynx.load_classifier)

    with pytest.raises(ModelError, match="needs code from its folder"):
        load(str(folder), profile="none")
    assert not mark_of(folder).exists()


def test_what_transformers_has_needs_no_code(cli: Cli, own: Callable[..., Path], tiny_folder: Path) -> None:
    """Code beside a model and a tokenizer that transformers knows stays unread, and the answer is its own classes'."""

    def offered(folder: Path) -> None:
        names = {"AutoConfig": "own.OwnLlamaConfig", "AutoModelForCausalLM": "own.OwnLlama"}
        edit(folder / "config.json", auto_map=names)
        edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.OwnTokenizer"]})
        (folder / "custom_generate").mkdir()
        shutil.copy(folder / "own.py", folder / "custom_generate" / "generate.py")
        (folder / "generation_config.json").unlink(missing_ok=True)  # then the model's config is asked

    folder = own("generate", offered)
    result = cli("generate", "-m", folder, PROMPT, "-n", 12, "--no-stdin", stdin=b"y\n" * 9)

    assert not mark_of(folder).exists()
    assert (result.code, result.err) == (0, "")
    assert result.out == cli("generate", "-m", tiny_folder, PROMPT, "-n", 12, "--draft", "none").out


def test_a_plan_refuses_a_model_of_its_own_code(cli: Cli, own: Callable[..., Path]) -> None:
    """`--dry-run` says that it would be refused; with the option, which files may run."""
    folder = own("generate", llama)

    assert cli("generate", "-m", folder, "x", "--dry-run").code == 1
    told = cli("generate", "-m", folder, "x", "--dry-run", "--trust-remote-code")
    assert told.code == 0
    assert "trust_remote_code  yes (code of its own may run: own.py; command line)" in told.out
    assert not mark_of(folder).exists()


TRUSTED = [
    ("generate", (own_tokenizer, llama)),
    ("texts", (own_tokenizer,)),
    ("bert", (bert,)),
    ("pictures", (own_processor, vit)),
    ("draw", (own_pipeline, own_text_part)),
    ("draw", (own_scheduler,)),
]


@pytest.mark.parametrize(("task", "changes"), TRUSTED, ids=lambda v: v if isinstance(v, str) else "")
def test_trusted_code_runs(
    own: Callable[..., Path],
    models: SimpleNamespace,
    tmp_path: Path,
    task: str,
    changes: tuple[Callable[[Path], None], ...],
) -> None:
    """With the option a model of its own code answers, as the same weights do in the class that it is derived from."""
    folder = own(task, *changes)
    env = environment(
        DYNX_CACHE_DIR=str(tmp_path / "cache"),
        DYNX_CONFIG="none",
        HF_HUB_OFFLINE="1",
        HF_MODULES_CACHE=str(tmp_path / "modules"),
        OMP_NUM_THREADS="1",
    )

    def run(folder: Path, *more: str) -> subprocess.CompletedProcess[bytes]:
        words = [*arguments(task, folder, models), *more, "--profile", "none", "-q"]
        command = [sys.executable, "-m", "dynx", *map(str, words)]
        return subprocess.run(command, env=env, capture_output=True, stdin=subprocess.DEVNULL, check=False)

    trusted = run(folder, "--trust-remote-code")

    assert trusted.returncode == 0, trusted.stderr.decode()
    assert mark_of(folder).exists()
    plain = shutil.copytree(getattr(models, task), tmp_path / "plain", ignore=shutil.ignore_patterns("drafter"))
    usual = run(Path(plain))
    if task == "draw":
        with Image.open(folder.with_suffix(".png")) as one, Image.open(tmp_path / "plain.png") as other:
            assert one.tobytes() == other.tobytes() or changes == (own_scheduler,)
    else:
        assert trusted.stdout == usual.stdout


def test_a_profile_belongs_to_the_code(own: Callable[..., Path]) -> None:
    """Trusted code is part of what a model is; code that isn't run is not."""
    folder = own("generate", llama)
    before, without = model_hash(folder, code=True), model_hash(folder)
    (folder / "own.py").write_text("# changed\n", "utf-8")

    assert model_hash(folder, code=True) != before
    assert model_hash(folder) == without


def test_what_a_folder_says_of_its_code(own: Callable[..., Path]) -> None:
    """The classes named, whether their files are there, and that a drafter inside is trusted with its model."""
    folder = own("generate", llama, own_tokenizer)

    assert own_code.declared(folder) == ["own.OwnLlama", "own.OwnLlamaConfig", "own.OwnTokenizer"]
    assert not own_code.lacks(folder)
    (folder / "own.py").unlink()
    assert own_code.lacks(folder)
    edit(folder / "config.json", auto_map={"AutoConfig": "somebody/else--own.OwnLlamaConfig"})
    edit(folder / "tokenizer_config.json", auto_map={})
    assert not own_code.lacks(folder)


def test_trust_goes_on_to_the_drafter_and_the_next_command(tiny_folder: Path) -> None:
    """What was allowed for a model holds for the drafter in its folder, and is repeated in a suggested command."""
    for trusted in (False, True):
        drafter = find(str(tiny_folder), trust_remote_code=trusted).bundled_drafter
        assert drafter is not None
        assert drafter.trusted == trusted
    request = GeneratorRequest("tiny", allow_pickle=True, trust_remote_code=True)
    assert calibrate_command(request) == "dynx calibrate -m tiny --allow-pickle --trust-remote-code"
    assert calibrate_command(GeneratorRequest("tiny")) == "dynx calibrate -m tiny"
