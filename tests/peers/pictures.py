"""Pictures per second of dynx against diffusers on PyTorch and the pipeline's network on OpenVINO, in fixed numbers of steps.

    python tests/peers/pictures.py MODEL --data FILE [--pictures 64] [--steps 6 8 9 10 12 15] [--work FOLDER]  # SSIM of each
    python tests/peers/pictures.py MODEL --data FILE --timed 16 [--rounds 3] [--only NAME…] [--work FOLDER]  # their times
    python tests/peers/pictures.py MODEL --data FILE --cold [--rounds 3] [--only NAME…] [--work FOLDER]  # a process each

MODEL is a folder, or the name of a shipped model. FILE has a prompt per line. Every arm is a process of its own, only one
works at a time, and the order changes with every round; the first round warms up. An arm is called KIND-STEPS or
KIND-STEPS@B, where B pictures share a call: `diffusers-50`, `openvino-bfloat16-10@8`. The openvino arms are diffusers'
pipeline whose network and decoder are exported and run by OpenVINO, on all cores, with PyTorch on one thread beside it; what
is exported is kept in `--work`. dynx uses the profile that `dynx calibrate` stored. SSIM is to diffusers' own run of 50 steps
from the same seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

FIRST_SEED = 1 << 20
STEPS = (6, 8, 9, 10, 12, 15)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def folder_of(model: str) -> str:
    """A shipped model's folder, or the folder itself."""
    return model if Path(model).is_dir() else str(Path(__file__).parents[2] / "dynx" / "shipped" / model)


def guidance_of(folder: str) -> dict[str, float]:
    """The guidance that the model's folder asks for."""
    try:
        return {"guidance_scale": float(json.loads((Path(folder) / "dynx.json").read_text())["guidance"])}
    except (OSError, KeyError, ValueError):
        return {}


def wanted(given: argparse.Namespace) -> list[tuple[str, int]]:
    """Prompts and seeds."""
    lines = [line for line in given.data.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [(lines[i % len(lines)], FIRST_SEED + i) for i in range(given.timed or given.pictures)]


class OnOpenVINO:
    """A module's forward on OpenVINO, exported for the shapes of its first call, and kept."""

    def __init__(self, module: Any, precision: str, file: Path, wrap: Callable[[Any], Any]) -> None:
        self.module, self.forward, self.precision, self.file, self.wrap = module, module.forward, precision, file, wrap
        self.request: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute a call."""
        import openvino as ov
        import torch

        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        if self.request is None:
            if not self.file.exists():
                names = list(kwargs)

                class Flat(torch.nn.Module):
                    def __init__(inner) -> None:  # noqa: N805
                        super().__init__()
                        inner.module = self.module

                    def forward(inner, *given: Any) -> Any:  # noqa: N805
                        rest = iter(given)
                        own = [next(rest) if isinstance(a, torch.Tensor) else a for a in args]
                        named = {n: next(rest) if isinstance(kwargs[n], torch.Tensor) else kwargs[n] for n in names}
                        out = self.forward(*own, **named)
                        return out[0] if isinstance(out, tuple) else out

                with torch.no_grad():
                    graph = ov.convert_model(torch.export.export(Flat(), tuple(t.clone() for t in tensors)))
                graph.reshape({p: list(t.shape) for p, t in zip(graph.inputs, tensors, strict=True)})
                ov.save_model(graph, self.file, compress_to_fp16=False)
            hint = "f32" if self.precision == "float32" else "bf16"
            settings = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
            if hint == "f32":  # OpenVINO 2026.4 crashes on some networks with attention otherwise
                settings["SNIPPETS_MODE"] = "DISABLE"
            self.request = ov.Core().compile_model(self.file, "CPU", settings).create_infer_request()
        found = self.request.infer([t.contiguous().numpy() for t in tensors], share_inputs=True)[0]
        return self.wrap(torch.from_numpy(found.copy()))


def static_arm(given: argparse.Namespace, kind: str, steps: int, batch: int) -> Callable[[Sequence[Any]], Any]:
    """diffusers' pipeline in a fixed number of steps."""
    import torch
    from diffusers import DiffusionPipeline

    folder = folder_of(given.model)
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    if kind.startswith("openvino"):
        precision = kind.partition("-")[2]
        torch.set_num_threads(1)
        given.work.mkdir(parents=True, exist_ok=True)
        slot = "unet" if getattr(pipe, "unet", None) is not None else "transformer"
        network = getattr(pipe, slot)
        network.forward = OnOpenVINO(network, precision, given.work / f"{slot}-{batch}.xml", lambda t: (t,))
        decoder = pipe.vae.decoder
        decoder.forward = OnOpenVINO(decoder, "float32", given.work / f"decoder-{batch}.xml", lambda t: t)
    extra = guidance_of(folder)

    def run(pairs: Sequence[tuple[str, int]]) -> list[Any]:
        out: list[Any] = []
        for at in range(0, len(pairs), batch):
            some = [*pairs[at : at + batch]]
            filled = [*some, *[some[-1]] * (batch - len(some))]
            seeds = [torch.Generator().manual_seed(seed) for _, seed in filled]
            found = pipe(
                [prompt for prompt, _ in filled],
                num_inference_steps=steps,
                generator=seeds,
                output_type="np",
                **extra,
            )
            out += list(found.images[: len(some)])
        return out

    return run


def dynx_arm(given: argparse.Namespace) -> Callable[[Sequence[Any]], Any]:
    """dynx, as calibrated, for as many pictures as will be drawn."""
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from dynx.diffusion import assemble, make_plan
    from dynx.diffusion.generator import ImageGenerator
    from dynx.diffusion.plan import ImageGeneratorRequest

    count = len(wanted(given)) * (given.rounds + 1)
    request = ImageGeneratorRequest(given.model, backend=given.backend)
    assembly = assemble(make_plan(request), pictures=count, together=True)
    for name in ("backend", "steps"):
        sys.stderr.write(f"dynx: {name}: {getattr(assembly.decisions, name)}\n")
    artist = ImageGenerator(assembly)

    def run(pairs: Sequence[tuple[str, int]]) -> list[Any]:
        found = dict(artist.draw_all(pairs))
        return [found[i].pixels for i in range(len(pairs))]

    return run


def serve(given: argparse.Namespace) -> None:
    """Load an arm, and draw all pictures for each line on stdin, into the file that it names, if it does."""
    import resource

    import numpy as np

    name, _, batch = given.serve.partition("@")
    kind, _, steps = name.rpartition("-")
    run = dynx_arm(given) if given.serve == "dynx" else static_arm(given, kind, int(steps), int(batch or 1))
    pairs = wanted(given)
    say("{}")
    for line in sys.stdin:
        began = time.perf_counter()
        pictures = run(pairs)
        seconds = time.perf_counter() - began
        if line.strip():
            np.save(line.strip(), np.stack([np.asarray(p, dtype=np.float32) for p in pictures]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        say(json.dumps({"seconds": seconds, "peak": peak}))


class Server:
    """An arm in a process of its own."""

    def __init__(self, arm: str, given: argparse.Namespace) -> None:
        command = [sys.executable, __file__, given.model, "--data", str(given.data), "--work", str(given.work)]
        command += ["--pictures", str(given.pictures), "--timed", str(given.timed), "--rounds", str(given.rounds)]
        command += ["--backend", given.backend]
        self.process = subprocess.Popen(
            [*command, "--serve", arm],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if arm == "dynx" else subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def ask(self, file: str = "") -> dict[str, Any]:
        """{"seconds": …, "peak": MiB}."""
        if self.process.stdin is None:
            raise RuntimeError("no pipe")
        self.process.stdin.write(f"{file}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        for line in self.process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError(f"{self.process.args} ended with {self.process.wait()}")


def likeness(given: argparse.Namespace) -> None:
    """Print p5, worst and median SSIM of each arm's pictures to diffusers' own run."""
    import numpy as np

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from dynx.diffusion.similarity import ssim, tails

    given.work.mkdir(parents=True, exist_ok=True)

    def drawn(arm: str) -> Any:
        file = given.work / f"{arm}-{given.pictures}.npy"
        if not file.exists() or arm == "dynx":
            server = Server(arm, given)
            server.ask(str(file))
            server.close()
        return np.load(file)

    full = drawn("diffusers-50")
    say(f"{'':28} SSIM p5   worst  median")
    for arm in given.only or ["dynx", *(f"openvino-bfloat16-{n}" for n in given.steps)]:
        found = tails([ssim(np.clip(a, 0, 1), b) for a, b in zip(drawn(arm), full, strict=True)])
        say(f"{arm:28} {found.p5:.3f}   {found.worst:.3f}   {found.median:.3f}")


def timed(given: argparse.Namespace) -> None:
    """Print seconds per picture of each arm, and ratios to the others."""
    servers = {arm: Server(arm, given) for arm in given.only}
    seconds: dict[str, list[float]] = {arm: [] for arm in servers}
    peaks: dict[str, float] = {}
    order = list(servers)
    for number in range(given.rounds + 1):
        random.shuffle(order)
        for arm in order:
            found = servers[arm].ask()
            peaks[arm] = found["peak"]
            if number:
                seconds[arm].append(found["seconds"] / given.timed)
    report(seconds, peaks)


def cold(given: argparse.Namespace) -> None:
    """Print the seconds of a whole process that draws its pictures, from its start to its end."""
    seconds: dict[str, list[float]] = {arm: [] for arm in given.only}
    order = list(seconds)
    given.timed = given.timed or 1
    prompts = [prompt for prompt, _ in wanted(given)]
    for number in range(given.rounds + 1):
        random.shuffle(order)
        for arm in order:
            command = [sys.executable, __file__, given.model, "--data", str(given.data), "--work", str(given.work)]
            command += ["--timed", str(given.timed), "--serve", arm]
            if arm == "dynx":
                command = [sys.executable, "-m", "dynx", "draw", "-m", given.model, *prompts, "--force", "-q"]
                command += [
                    "-o",
                    f"{given.work}/cold-{{n}}.png",
                    "--seed",
                    str(FIRST_SEED),
                    "--no-stdin",
                    "--backend",
                    given.backend,
                ]
            env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
            began = time.perf_counter()
            subprocess.run(command, input=b"\n", check=True, stdout=subprocess.DEVNULL, env=env)
            if number:
                seconds[arm].append(time.perf_counter() - began)
    report(seconds, {})


def report(seconds: dict[str, list[float]], peaks: dict[str, float]) -> None:
    """Print medians, ratios to dynx by round, and peak memory."""
    say(f"{'':28} seconds   dynx is faster by      peak memory, MiB")
    for arm, took in seconds.items():
        ratios = sorted(a / b for a, b in zip(took, seconds.get("dynx", took), strict=True))
        said = f"{statistics.median(ratios):.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}]"
        say(f"{arm:28} {statistics.median(took):7.3f}   {said:22} {peaks.get(arm, 0):.0f}")


def main() -> None:
    """Compare pictures, or time them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="*", default=STEPS)
    parser.add_argument("--timed", type=int, default=0)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--backend", default="auto", help="of dynx; auto is what its profile measured")
    parser.add_argument("--work", type=Path, default=Path("pictures-work"))
    parser.add_argument("--serve")
    given = parser.parse_args()
    if given.serve:
        serve(given)
    elif given.cold:
        cold(given)
    elif given.timed:
        timed(given)
    else:
        likeness(given)


if __name__ == "__main__":
    main()
