"""Labels per second of dynx's classifier against the whole model on OpenVINO, on PyTorch, and in transformers' pipeline.

    python tests/peers/labels.py MODEL --data FILE [--batch 32] [--rounds 7] [--only NAME…] [--work FOLDER]
                                 [--python NAME=PATH…] [--lessons FILE]

MODEL is a folder, or the name of a shipped model. FILE has a text per line, with a label after a tab or without. All
arms take the same texts, sorted by length into the same batches, tokenized within the time; each is a process of its
own, only one works at a time, and the order changes with every round. The openvino arms are what optimum-intel
exports, with its int8 by post-training quantization of 300 of the texts of `--lessons`; their interpreter needs
optimum-intel (`--python openvino=…`, made by `environment.sh`). dynx uses the profile that `dynx calibrate` stored.
The first round warms up. Labels are compared with those of the float32 model on PyTorch.
"""

from __future__ import annotations

import argparse
import inspect
import json
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ARMS = ("torch", "pipeline", "openvino-float32", "openvino-bfloat16", "openvino-int8", "dynx")
QUANTIZATION_TEXTS = 300


def texts_of(path: Path) -> list[str]:
    """The texts of a file, without labels behind a tab."""
    return [line.rsplit("\t", 1)[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def folder_of(model: str) -> str:
    """A shipped model's folder, or the folder itself."""
    if Path(model).is_dir():
        return model
    return str(Path(__file__).parents[2] / "dynx" / "shipped" / model)


class Server:
    """An arm in a process of its own."""

    def __init__(self, arm: str, python: str, given: argparse.Namespace) -> None:
        command = [
            python,
            __file__,
            given.model,
            "--data",
            str(given.data),
            "--batch",
            str(given.batch),
            "--serve",
            arm,
        ]
        command += ["--work", str(given.work)]
        if given.lessons:
            command += ["--lessons", str(given.lessons)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arm == "dynx" else subprocess.DEVNULL,
            text=True,
        )
        self.start = self.ask(None)

    def ask(self, question: str | None = "run") -> dict[str, Any]:
        """{"seconds": …, "labels": […]}."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipe")
        if question is not None:
            self.process.stdin.write(question + "\n")
            self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("{"):  # libraries print what they like
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")


def in_batches(texts: Sequence[str], tokenizer: Any, batch: int, answer: Callable[[Any], Any]) -> list[int]:
    """Tokenize all, sort by length, answer batches; the best class of each, in order."""
    encoded = tokenizer(list(texts), truncation=True)
    names = list(encoded.keys())
    order = sorted(range(len(texts)), key=lambda i: -len(encoded["input_ids"][i]))
    out = [0] * len(texts)
    for at in range(0, len(order), batch):
        rows = order[at : at + batch]
        padded = tokenizer.pad({name: [encoded[name][i] for i in rows] for name in names}, return_tensors="np")
        for i, logits in zip(rows, answer(dict(padded)), strict=True):
            out[i] = int(logits.argmax())
    return out


def torch_arm(given: argparse.Namespace) -> Any:
    """The float32 model on PyTorch."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = folder_of(given.model)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    takes = inspect.signature(model.forward).parameters

    def answer(inputs: dict[str, Any]) -> Any:
        with torch.inference_mode():
            return model(**{k: torch.from_numpy(v) for k, v in inputs.items() if k in takes}).logits.numpy()

    return lambda texts: [model.config.id2label[c] for c in in_batches(texts, tokenizer, given.batch, answer)]


def pipeline_arm(given: argparse.Namespace) -> Any:
    """transformers' pipeline, with the batch size."""
    import torch
    from transformers import pipeline

    pipe = pipeline("text-classification", folder_of(given.model), dtype=torch.float32)
    return lambda texts: [found["label"] for found in pipe(list(texts), batch_size=given.batch, truncation=True)]


def fed(inputs: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Inputs by the graph's names; token types are zero where the tokenizer makes none."""
    return {name: inputs[name] if name in inputs else 0 * inputs["input_ids"] for name in names}


def openvino_arm(given: argparse.Namespace, precision: str) -> Any:
    """The whole model as optimum-intel exports it, on all cores, tuned for latency."""
    import openvino as ov
    from optimum.intel import OVModelForSequenceClassification
    from transformers import AutoConfig, AutoTokenizer

    folder = folder_of(given.model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    labels = AutoConfig.from_pretrained(folder).id2label
    kept = given.work / f"{'int8' if precision == 'int8' else 'float'}.xml"
    if not kept.exists():
        graph = OVModelForSequenceClassification.from_pretrained(folder, export=True, compile=False).model
        names = [port.get_any_name() for port in graph.inputs]
        if precision == "int8":
            import nncf

            lessons = texts_of(given.lessons)[:QUANTIZATION_TEXTS]
            made = [fed(dict(tokenizer(text, return_tensors="np")), names) for text in lessons]
            graph = nncf.quantize(
                graph, nncf.Dataset(made), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(made)
            )
        ov.save_model(graph, kept, compress_to_fp16=False)
    graph = ov.Core().read_model(kept)
    names = [port.get_any_name() for port in graph.inputs]
    hint = "f32" if precision == "float32" else "bf16"
    settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    request = ov.Core().compile_model(graph, "CPU", settings).create_infer_request()

    def answer(inputs: dict[str, Any]) -> Any:
        return request.infer(fed(inputs, names), share_inputs=True)[0]

    return lambda texts: [labels[c] for c in in_batches(texts, tokenizer, given.batch, answer)]


def dynx_arm(given: argparse.Namespace) -> Any:
    """dynx, as calibrated."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from dynx.early_exit import assemble, make_plan
    from dynx.early_exit.classifier import Classifier
    from dynx.early_exit.plan import ClassifierRequest

    assembly = assemble(make_plan(ClassifierRequest(given.model, batch_size=given.batch)))
    for name in ("backend", "exits"):
        sys.stderr.write(f"dynx: {name}: {getattr(assembly.decisions, name)}\n")
    job = Classifier(assembly)

    def run(texts: Sequence[str]) -> list[str | None]:
        if given.batch == 1:
            return [job.window([text])[0].label for text in texts]
        return [prediction.label for prediction in job.window(list(texts))]

    return run


def serve(given: argparse.Namespace) -> None:
    """Load an arm, and run it once for each line on stdin."""
    began = time.perf_counter()
    kind, _, precision = given.serve.partition("-")
    makers = {"torch": torch_arm, "pipeline": pipeline_arm, "dynx": dynx_arm}
    run = openvino_arm(given, precision) if kind == "openvino" else makers[kind](given)
    texts = texts_of(given.data)
    say(json.dumps({"seconds": time.perf_counter() - began}))
    for _ in sys.stdin:
        began = time.perf_counter()
        labels = run(texts)
        say(json.dumps({"seconds": time.perf_counter() - began, "labels": labels}))


def main() -> None:
    """Time all arms in turns and print labels per second, ratios to the best static arm, and labels that differ."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--lessons", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", default=ARMS)
    parser.add_argument("--python", nargs="*", default=[])
    parser.add_argument("--work", type=Path, default=Path(), help="where exported graphs are kept")
    parser.add_argument("--serve")
    given = parser.parse_args()
    if given.serve:
        serve(given)
        return
    pythons = dict(pair.split("=", 1) for pair in given.python)
    servers = {arm: Server(arm, pythons.get(arm.partition("-")[0], sys.executable), given) for arm in given.only}
    seconds: dict[str, list[float]] = {arm: [] for arm in servers}
    labels: dict[str, list[str]] = {}
    order = list(servers)
    for number in range(given.rounds + 1):
        random.shuffle(order)
        for arm in order:
            found = servers[arm].ask()
            labels[arm] = found["labels"]
            if number:
                seconds[arm].append(found["seconds"])
    static = [arm for arm in servers if arm != "dynx"]
    best = min(static, key=lambda arm: statistics.median(seconds[arm])) if static else None
    say(f"{'':20} labels/s  of {best or '-':20} labels that differ from torch's")
    for arm, took in seconds.items():
        ratios = sorted(b / s for b, s in zip(seconds[best], took, strict=True)) if best else [1.0]
        differ = sum(a != b for a, b in zip(labels[arm], labels["torch"], strict=True)) if "torch" in labels else None
        speed = len(labels[arm]) / statistics.median(took)
        say(f"{arm:20} {speed:8.0f}  {statistics.median(ratios):.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]  {differ}")


if __name__ == "__main__":
    main()
