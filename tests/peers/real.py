"""dynx against transformers, OpenVINO GenAI and llama.cpp: a real model and real questions, in one interleaved run.

    python tests/peers/real.py --model smollm2 --precision bf16 --rounds 1 --questions 24
    python tests/peers/real.py --model smollm2 --precision bf16 --starts       # load, prompt speed, memory
    python tests/peers/real.py --report RUN.jsonl… --json FILE

Needs what `environment.sh` and `real_models.py` make. Each peer runs in a process of its own, with its own Python, and answers
question by question in a new random order of all arms; the others are stopped meanwhile. Every arm is warmed up. Answers are
greedy, end tokens honoured. Each answer is appended to --out at once: the same command goes on where it was interrupted, and
--budget ends it after so many seconds. Ratios are of times summed over questions, prompts included.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from questions import Question, choose, long_prompt, prompt_ids, read
from real_arms import PEERS, Setup
from real_models import Model, find

SERVER = Path(__file__).with_name("real_server.py")
TRIES, DISTURBED_SHARE = 3, 0.1
"""Times that an answer is repeated, while other processes spend more than this share of its seconds on the processors."""

PROMPT_TOKENS = 1500
"""Length of the prompt by which reading is timed."""


class Peer:
    """A process that answers one question at a time, and is stopped while another one does."""

    def __init__(
        self, name: str, python: str, setup: Setup, arms: list[str], env: dict[str, str] | None = None
    ) -> None:
        self.name = name
        self.began = time.perf_counter()
        self.process = subprocess.Popen(
            [python, str(SERVER), name, json.dumps(asdict(setup)), *arms],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if env else None,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self.ready = self._read()
        self.arms: list[str] = self.ready["arms"]

    def ask(self, **asked: Any) -> dict[str, Any]:
        """Return the answer to {"arm", "ids"} or {"memory"}."""
        if self.process.stdin is None:
            raise RuntimeError("no pipe")
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self._read()

    def stop(self) -> None:
        """Take its threads off the processor."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run."""
        self.process.send_signal(signal.SIGCONT)

    def spent(self) -> float:
        """Return the processor seconds of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self.go_on()
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait()

    def _read(self) -> dict[str, Any]:
        if self.process.stdout is None:
            raise RuntimeError("no pipe")
        for line in self.process.stdout:
            if line.startswith("{"):  # peers print what they like
                found: dict[str, Any] = json.loads(line)
                return found
        return {"arms": [], "error": f"{self.name} ended with {self.process.wait()}"}


def run(given: argparse.Namespace, model: Model) -> None:
    """Answer the questions that are not in --out yet."""
    setup, questions, ids = prepared(given, model)
    wanted = [tuple(arm.split(":", 1)) for arm in given.arms]
    done = {(e["round"], e["question"], e["peer"], e["arm"]) for e in entries(given.out)}
    began = time.perf_counter()
    peers: dict[str, Peer] = {}
    with given.out.open("a", encoding="utf-8") as out:

        def note(entry: dict[str, Any]) -> None:
            out.write(json.dumps({**facts(given, setup), **entry}, ensure_ascii=False) + "\n")
            out.flush()

        for name in given.peers:
            peer = Peer(name, given.pythons[name], setup, [arm for whose, arm in wanted if whose == name])
            if peer.arms:
                peers[name] = peer
                peer.stop()
            else:
                sys.stderr.write(f"{name}: {peer.ready.get('error', 'no arms')}\n")
                note({"kind": "", "failed": peer.ready.get("error", "no arms"), "peer": name} | blank())
        arms = [(name, arm) for name, peer in peers.items() for arm in peer.arms]
        warm_up = min(ids.values(), key=len)
        for name, arm in arms:
            turn(peers, name, arm, warm_up)
        rng = random.Random(f"{given.seed} {began}" if done else given.seed)
        for number in range(given.rounds):
            for question in questions:
                rng.shuffle(arms)
                for name, arm in list(arms):
                    if (number, question.id, name, arm) in done:
                        continue
                    if given.budget and time.perf_counter() - began > given.budget:
                        sys.stderr.write("the budget is spent; the same command goes on\n")
                        close(peers)
                        return
                    answer, idle, foreign = undisturbed(peers, name, arm, ids[question.id])
                    if "error" in answer:
                        sys.stderr.write(f"{name} {arm} fails: {answer['error']}\n")
                        arms.remove((name, arm))
                    prompt = len(ids[question.id])
                    where = {"round": number, "question": question.id, "kind": question.kind, "prompt": prompt}
                    note(
                        {
                            **where,
                            "peer": name,
                            "arm": arm,
                            "idle": round(idle, 3),
                            "foreign": round(foreign, 3),
                            **answer,
                        }
                    )
        close(peers)


def undisturbed(peers: dict[str, Peer], name: str, arm: str, ids: list[int]) -> tuple[dict[str, Any], float, float]:
    """Return one peer's answer as `turn` does: of up to `TRIES`, the first that was left alone, or the least disturbed one."""
    found: list[tuple[dict[str, Any], float, float]] = []
    while len(found) < TRIES:
        found.append(turn(peers, name, arm, ids))
        answer, _, foreign = found[-1]
        if "error" in answer or foreign < DISTURBED_SHARE * answer["seconds"]:
            return found[-1]
    return min(found, key=lambda one: one[2])


def turn(peers: dict[str, Peer], name: str, arm: str, ids: list[int]) -> tuple[dict[str, Any], float, float]:
    """Return one peer's answer, and the processor seconds that the other peers and all other processes spent meanwhile."""
    others = [peer for peer in peers.values() if peer.name != name]
    before, own, all_ = sum(peer.spent() for peer in others), peers[name].spent(), machine_spent()
    peers[name].go_on()
    try:
        answer = peers[name].ask(arm=arm, ids=ids)
    finally:
        peers[name].stop()
    own, all_ = peers[name].spent() - own, machine_spent() - all_
    return answer, sum(peer.spent() for peer in others) - before, max(0.0, all_ - own)


def machine_spent() -> float:
    """Return the processor seconds that all processes have spent, and those of the machine's other guests."""
    user, nice, system, _idle, _wait, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def close(peers: dict[str, Peer]) -> None:
    """End all peers."""
    for peer in peers.values():
        peer.close()


def starts(given: argparse.Namespace, model: Model) -> None:
    """Time cold and warm starts, the reading of a long prompt, and peak memory: one process for each arm.

    Cold: no page of the model's files in memory and no cache of its own; warm: the same again.
    """
    setup, _, ids = prepared(given, model)
    short = min(ids.values(), key=len)
    long = long_prompt(tokenizer_of(setup), read(given.data), PROMPT_TOKENS)
    wanted = [tuple(arm.split(":", 1)) for arm in given.arms] or [
        (peer, arm) for peer in given.peers for arm in ("plain", "auto" if peer == "dynx" else "lookup k=5")
    ]
    done = {(e["peer"], e["arm"], e["start"]) for e in entries(given.out) if "start" in e}
    with given.out.open("a", encoding="utf-8") as out:
        for name, arm in wanted:
            arm = "lookup k=5 n=3" if (name, arm) == ("genai", "lookup k=5") else arm
            for start in ("cold", "warm"):
                if (name, arm, start) in done:
                    continue
                cache = given.out.with_suffix(f".{name}-{arm.replace(' ', '-')}.cache")
                if start == "cold":
                    forget(setup, cache)
                env = {"DYNX_CACHE_DIR": str(cache)} if name == "dynx" and given.own_caches else {}
                peer = Peer(name, given.pythons[name], setup, [arm], env)
                if not peer.arms:
                    sys.stderr.write(f"{name} {arm}: {peer.ready.get('error', 'no such arm')}\n")
                    break
                loaded = time.perf_counter() - peer.began
                first = peer.ask(arm=arm, ids=short)
                entry = {
                    "start": start,
                    "peer": name,
                    "arm": arm,
                    "load": loaded,
                    "first": first.get("first"),
                    **blank(),
                }
                entry["first"] = None if first.get("first") is None else loaded + first["first"]
                reads = [peer.ask(arm=arm, ids=long) for _ in range(3)]
                entry["prompt_seconds"] = sorted(r["first"] for r in reads if r.get("first"))[1:2]
                entry["memory"] = peer.ask(memory=True)["memory"]
                peer.close()
                out.write(json.dumps({**facts(given, setup), **entry}) + "\n")
                out.flush()


def forget(setup: Setup, cache: Path) -> None:
    """Drop the model's files from the page cache, and dynx's own cache of this run."""
    import shutil

    shutil.rmtree(cache, ignore_errors=True)
    for place in (Path(setup.folder), Path(setup.gguf), Path(setup.openvino)):
        for path in [place] if place.is_file() else place.rglob("*"):
            if path.is_file():
                fd = os.open(path, os.O_RDONLY)
                os.fdatasync(fd)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                os.close(fd)


def prepared(given: argparse.Namespace, model: Model) -> tuple[Setup, list[Question], dict[str, list[int]]]:
    """Return the setup, the questions, and each one's ids."""
    from transformers import GenerationConfig

    tokenizer = tokenizer_of(model)
    ends = GenerationConfig.from_pretrained(model.folder).eos_token_id
    setup = Setup(
        folder=str(model.folder),
        gguf=str(model.gguf),
        openvino=str(model.openvino),
        precision=given.precision,
        tokens=given.tokens,
        end=tuple(ends) if isinstance(ends, list) else (ends,),
        chat=bool(getattr(tokenizer, "chat_template", None)),
    )
    questions = choose(read(given.data), given.questions)
    return setup, questions, {q.id: prompt_ids(tokenizer, q.text) for q in questions}


def tokenizer_of(model: Any) -> Any:
    """Return the tokenizer that all peers' prompts are made with."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model.folder)


def facts(given: argparse.Namespace, setup: Setup) -> dict[str, Any]:
    """Return what every entry says about the run."""
    return {"model": given.model, "precision": given.precision, "limit": setup.tokens}


def blank() -> dict[str, Any]:
    """Return the fields of an entry that is no answer."""
    return {"round": -1, "question": ""}


def entries(path: Path) -> list[dict[str, Any]]:
    """Return what a run wrote so far; a line that was cut off doesn't count."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return [{"arm": "", **entry} for entry in found]


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description="Compare dynx with its peers on a real model and real questions.")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--models", type=Path, default=None, help="folder of the models, as real_models.py made it")
    parser.add_argument("--precision", choices=("bf16", "float32", "int8", "4", "file"), default="bf16")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--data", type=Path, help="Spec-Bench's questions.jsonl")
    parser.add_argument("-n", "--tokens", type=int, default=128)
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=None)
    parser.add_argument("--arms", nargs="*", default=[], metavar="PEER:ARM", help="only these arms")
    parser.add_argument("--python", default=sys.executable, help="of genai and llama; the others run in this one")
    parser.add_argument("--budget", type=float, default=0.0, metavar="SECONDS")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--starts", action="store_true", help="time loading and reading, and take peak memory")
    parser.add_argument("--own-caches", action="store_true", help="with --starts: dynx starts without its profiles")
    parser.add_argument("--out", type=Path, help="JSON lines of all answers; MODEL-PRECISION.jsonl by default")
    parser.add_argument("--report", type=Path, nargs="*", help="report these runs and measure nothing")
    parser.add_argument("--json", type=Path, help="write the report as JSON too")
    given = parser.parse_args()
    if given.report is None:
        if given.data is None:
            parser.error("--data is needed")
        model = find(given.model, given.models)
        default = {"file": ["genai", "llama", "dynx"], "4": ["genai", "dynx"], "int8": ["genai", "dynx"]}
        given.peers = given.peers or default.get(given.precision, list(PEERS))
        given.pythons = {name: given.python if name in ("genai", "llama") else sys.executable for name in given.peers}
        given.out = given.out or Path(f"{given.model}-{given.precision}.jsonl")
        (starts if given.starts else run)(given, model)
    from real_report import report

    report([entry for path in given.report or [given.out] for entry in entries(path)], given.json)


if __name__ == "__main__":
    main()
