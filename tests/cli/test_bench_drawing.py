"""`dynx bench` on tiny pipelines: the table with calls and tails, JSON, gates, prompts, and options of other tasks."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from support import pipelines
from support.commands import helps

from dynx import schemas
from dynx.cli.bench import drawing as bench_drawing
from dynx.cli.bench.arm_options import WITH_OPTIONS
from dynx.cli.options.draw import Options
from dynx.diffusion.profile_data import Guarantee
from dynx.diffusion.schedule import Schedule
from dynx.runtime.hashing import text_hash

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Result

    Cli = Callable[..., Result]

SHORT = ("--runs", 1, "--inputs", 4, "--static", "6,9")
PLAIN = 12
"""Steps of the pipeline's own run."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline that draws from prompts, one that draws tiny pictures from nothing, and one of few steps."""
    root = tmp_path_factory.mktemp("pipelines")
    pipelines.stable_diffusion().save_pretrained(root / "tiny")
    pipelines.ddim().save_pretrained(root / "bare")
    pipelines.consistency().save_pretrained(root / "swift")
    return root


@pytest.fixture
def bench(cli: Cli, folders: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """`dynx bench` on the tiny pipeline, whose own run takes fewer steps than pipelines have, so that tests are short."""
    real = bench_drawing.open_assembly

    def opened(*arguments: Any, **named: Any) -> Any:
        assembly = real(*arguments, **named)
        engine = assembly.engine
        if engine.adapter.default_steps > PLAIN:
            engine.adapter = replace(engine.adapter, default_steps=PLAIN)
            own = engine.draw
            engine.draw = lambda request, *a, **n: own(replace(request, steps=request.steps or PLAIN), *a, **n)
        return assembly

    monkeypatch.setattr(bench_drawing, "open_assembly", opened)

    def run(*arguments: object, model: str = "tiny", short: bool = True) -> Result:
        return cli("bench", "-m", folders / model, *(SHORT if short else ()), *arguments)

    return run


@pytest.fixture
def profiled(bench: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a profile drew every picture in eight steps."""
    real = bench_drawing.open_assembly

    def opened(*arguments: Any, **named: Any) -> Any:
        assembly = real(*arguments, **named)
        grid = assembly.engine.initial_call(pipelines.request("stable-diffusion", steps=PLAIN)).grid
        guarantee = Guarantee(0.95, 0.95, 0.05, n=60, failures=0, p5=0.97, worst=0.96, bundled=False)
        schedule = Schedule("dpm++2m", grid.thinned(8))
        assembly.step_profile = pipelines.profile_of(schedule, guarantee=guarantee, certificate=None)
        return assembly

    monkeypatch.setattr(bench_drawing, "open_assembly", opened)


def test_a_table_of_plain_static_and_dynamic(bench: Cli) -> None:
    """Every arm with its calls and tail; without a profile dynamic is plain, and why is said."""
    result = bench("--require-identical", "--min-quality", 0.9)
    lines = [re.split(r"  +", line.strip()) for line in result.out.splitlines()]

    assert (result.code, result.err) == (0, "")
    assert lines[0][:6] == ["arm", "images/s", "ratio", "calls", "SSIM p5", "worst"]
    assert [line[0] for line in lines[1:7]] == [
        "plain",
        "author 6",
        "author 9",
        "dpm++2m 6",
        "dpm++2m 9",
        "dynamic",
    ]
    assert [line[3] for line in lines[1:7]] == ["12.0", "6.0", "9.0", "6.0", "9.0", "12.0"]
    assert (lines[1][4], lines[6][4]) == ("1", "1")
    assert "dynamic: 12.0 network calls a picture to plain's 12.0" in result.out
    assert "dynamic equals plain: no profile; calibrating" in result.out
    assert "noise floor: plain draws the same picture to the bit each time" in result.out
    assert "require-identical: pass" in result.out
    assert "min-quality: pass, 4 of 4 pictures reach SSIM 0.9, 100.00 % [39.76, 100.00], at least 95 %" in result.out
    assert "from 1 round of 4 pictures" in result.out


@pytest.mark.parametrize("lora", [False, True], ids=["image", "image and lora"])
def test_pictures_that_start_from_one(bench: Cli, tmp_path: Path, lora: bool) -> None:
    """Every arm starts from it, with the calls that the strength leaves; the header names it and the adapters."""
    Image.new("RGB", (16, 16), "red").save(tmp_path / "red.png")
    given: list[object] = ["--with", f"--image {tmp_path / 'red.png'} --strength 0.5"]
    if lora:
        pipelines.write_lora(tmp_path / "tone.safetensors")
        given += ["--lora", f"{tmp_path / 'tone.safetensors'}:0.5"]

    result = bench("--json", "--require-identical", "--min-quality", 0.9, *given)

    assert (result.code, result.err) == (0, "")
    document = json.loads(result.out)
    assert schemas.complaint(document) is None
    header = document["header"]
    assert (header["image"], header["strength"], header["masked"]) == ("red.png", 0.5, False)
    assert ("adapters" in header) is lora
    calls = {arm["name"]: arm["facts"]["mean_calls"] for arm in document["arms"]}
    assert calls == {"plain": 6, "author 6": 3, "author 9": 4, "dpm++2m 6": 6, "dpm++2m 9": 9, "dynamic": 6}


def test_json_keeps_to_its_schema(bench: Cli, profiled: None) -> None:
    """One document of the published schema: on what was measured, tails and calls of each arm, and the rivals."""
    result = bench("--json", "--with", "--quality 0.001 --guidance 3", "--min-speedup", 0.01)
    document = result.document
    assert schemas.complaint(document) is None
    header = document["header"]
    arms = {arm["name"]: arm for arm in document["arms"]}

    assert (result.code, result.err) == (0, "")
    assert (document["task"], document["unit"], document["cases"]) == ("draw", "images", 4)
    assert (header["pipeline"], header["scheduler"]) == ("StableDiffusionPipeline", "DDIMScheduler")
    assert (header["plain_steps"], header["pictures"], header["guidance"], header["quality"]) == (12, 4, 3.0, 0.001)
    assert (header["guarantee"]["ssim"], header["guarantee"]["certified_on"]) == (0.95, 60)
    assert "diffusers" in header["versions"]
    assert arms["dynamic"]["facts"] | {"ssim": 0} == {
        "calls": 8,
        "rows": 16,
        "steps_run": 8,
        "steps_skipped": 0,
        "steps_unguided": 0,
        "mean_calls": 8.0,
        "mean_rows": 16.0,
        "ssim": 0,
        "clip": None,
    }
    assert arms["plain"]["facts"]["ssim"] == {"n": 4, "mean": 1.0, "median": 1.0, "p5": 1.0, "worst": 1.0}
    assert arms["dynamic"]["identical"] == 0
    p5 = {name: arm["facts"]["ssim"]["p5"] for name, arm in arms.items()}
    for found in document["comparisons"]:
        bar = p5["dynamic"] if found["basis"].endswith("of equal p5") else 0.001
        assert p5[found["baseline"]] >= bar
    assert document["comparisons"]
    (gate,) = document["gates"]
    assert re.search(r"\] of plain is at or above 0\.01x", gate["reason"])


def test_exports(bench: Cli, tmp_path: Path, profiled: None) -> None:
    """Markdown has the further columns as well."""
    result = bench("--export", f"md:{tmp_path / 'out.md'}", "--static", "none")
    text = (tmp_path / "out.md").read_text(encoding="utf-8")

    assert result.code == 0
    assert "| arm | images/s | ratio to plain | interval | calls | SSIM p5 | worst | identical | outliers |" in text
    assert re.search(r"^\| \*\*dynamic\*\* \|.*\| 8\.0 \|", text, re.MULTILINE)


def test_a_quality_out_of_reach_fails(bench: Cli, profiled: None) -> None:
    """With exit code 3, the figures on stdout all the same, and the reason on stderr."""
    result = bench("--min-quality", 1, "--static", "none")

    assert result.code == 3
    assert "dynamic: 8.0 network calls a picture to plain's 12.0" in result.out
    assert re.fullmatch(r"dynx: min-quality: 0 of 4 pictures reach SSIM 1, .* below 95 % as a whole\n", result.err)


def test_a_few_step_pipeline(bench: Cli) -> None:
    """Nothing is dynamic, no pixel changes, and no foreign solver is tried on it."""
    result = bench("--static", "2", "--require-identical", "--json", model="swift")
    arms = {arm["name"]: arm["facts"]["calls"] for arm in result.document["arms"]}

    assert (result.code, result.err) == (0, "")
    assert arms == {"plain": 4, "author 2": 2, "dynamic": 4}
    assert result.document["header"]["steps"]["reason"].startswith("a few-step model")


def test_prompts_of_a_file(bench: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawn at random and in order where there are more than asked for; they return where there are fewer."""
    seen: list[str] = []
    monkeypatch.setattr(
        "dynx.bench.runner.measure", lambda arms, cases, **_: seen.extend(case.prompt for case in cases) or 1 / 0
    )
    data = tmp_path / "prompts.txt"
    data.write_text("a cat\n\nblue moon\nthe apple\n", encoding="utf-8")
    bench("--data", data, "--inputs", 2)
    two, seen[:] = list(seen), []
    bench("--data", data, "--inputs", 4)

    assert len(two) == 2
    assert two in (["a cat", "blue moon"], ["a cat", "the apple"], ["blue moon", "the apple"])
    assert seen == ["a cat", "blue moon", "the apple", "a cat"]


def test_prompts_of_the_vocabulary_are_new_to_calibration() -> None:
    """None of those that it learns from, where there are enough words; nothing at all for a pipeline without a prompt."""
    words = {f"Ġword{chr(97 + i)}{chr(97 + j)}": 26 * i + j for i in range(26) for j in range(26)}
    tokenizer = SimpleNamespace(get_vocab=lambda: words)
    adapter = SimpleNamespace(prompted=True)
    assembly: Any = SimpleNamespace(engine=SimpleNamespace(pipe=SimpleNamespace(tokenizer=tokenizer), adapter=adapter))
    from dynx.diffusion.prompts import own_prompts

    found = bench_drawing.prompts(assembly, None, 40)
    adapter.prompted = False

    assert len(set(found)) == 40
    assert not set(found) & set(own_prompts(assembly.engine))
    assert bench_drawing.prompts(assembly, None, 40) == [""]


@pytest.mark.parametrize(("learned", "warned"), [(["a cat", "b"], True), (["a dog"], False)])
def test_prompts_that_the_steps_were_learned_from_are_told(learned: list[str], warned: bool) -> None:
    """Whoever reads the figures should know."""
    profile = SimpleNamespace(evidence={"data": text_hash(learned)})
    engine = SimpleNamespace(adapter=SimpleNamespace(random=False), kernels=None)
    assembly: Any = SimpleNamespace(step_profile=object(), plan=SimpleNamespace(profile=profile), engine=engine)

    assert bool(bench_drawing.notes(assembly, ["a cat", "b"])) == warned


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--draft", "none"], "--draft is for language models; tiny is a text-to-image pipeline"),
        (["-n", "8"], "--max-new-tokens is for language models; tiny is a text-to-image pipeline"),
        (["--with", "--temperature 0"], "--temperature is for language models"),
        (["--max-disagreement", "0.1"], "--max-disagreement is for classifiers; tiny is a text-to-image pipeline"),
        (["--with", "--batch-size 8"], "--batch-size is for classifiers"),
        (["--with", "--tsv"], "--tsv is for classifiers"),
        (["--labels", "x"], "--labels is for classifiers"),
        (["--arm", "hf=transformers"], "--arm hf: transformers has no text-to-image pipelines"),
        (["--static", "0-5"], "--static 0-5: steps are numbers from 1 to 1000"),
        (["--with", "--quality 1.5"], "--quality 1.5 must lie between 0 and 1"),
        (["--with", "--guidance inf"], "--guidance must be a finite number, not inf"),
        (["--with", "--size big"], "--size big: must be width and height in pixels"),
        (["--with", "--size 15"], "15x15: width and height must be multiples of"),
        (["--min-quality", "2"], "must be an SSIM above 0 and up to 1"),
        (["--data", "/nowhere.txt"], "--data /nowhere.txt can't be read"),
    ],
    ids=str,
)
def test_what_cannot_be_measured_is_told_before_measuring(
    bench: Cli, options: list[str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options of other tasks and bad values are refused in one line, and nothing is run."""
    monkeypatch.setattr("dynx.bench.runner.measure", lambda *_, **__: pytest.fail("measured"))
    result = bench(*options, short=False)

    assert (result.code, result.out) == (2, "")
    assert words in result.err.splitlines()[0]
    assert len(result.err.splitlines()) <= 2


@pytest.mark.parametrize(
    "options",
    [["--with", "--quality 0.9"], ["--with", "--guidance 3"], ["--with", "--size 64"], ["--min-quality", "0.9"]],
)
def test_a_language_model_has_none_of_a_pipeline_s_options(cli: Cli, tiny_folder: Path, options: list[str]) -> None:
    """They are refused, not ignored."""
    result = cli("bench", "-m", tiny_folder, *options)

    assert (result.code, result.out) == (2, "")
    name = options[options[0] == "--with"].split()[0]
    assert result.err == f"dynx: {name} is for text-to-image pipelines; tiny is a language model\n"


def test_a_pipeline_without_prompts(bench: Cli, tmp_path: Path) -> None:
    """It takes no data; pictures too small for SSIM can't be judged, and that is said."""
    data = tmp_path / "prompts.txt"
    data.write_text("a cat\n", encoding="utf-8")
    refused = bench("--data", data, model="bare")
    small = bench(model="bare")

    assert (refused.code, refused.err.splitlines()[0]) == (2, "dynx: bare takes no prompt")
    assert (small.code, small.err) == (2, "dynx: pictures of 8×8 are too small to be compared by SSIM\n")


def test_help_tells_the_task_s_defaults() -> None:
    """What an option defaults to depends on the task, so that help says it in words, which must be true."""
    options = helps("bench")
    for name, default in vars(bench_drawing.Settings()).items():
        if name in WITH_OPTIONS:
            assert default == getattr(Options(), name), name
        elif default not in (None, ()):
            assert str(default) in options[f"--{name.replace('_', '-')}"], name
