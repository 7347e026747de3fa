"""What `real.py` reports of its runs: a table for people, and everything in JSON.

Speeds are tokens per second of whole answers, prompts included, over the questions that all arms answered. Ratios are those of
`dynx.bench.statistics`, with 95 % intervals for questions like these.
"""

from __future__ import annotations

import json
import random
import sys
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

from questions import KINDS

from dynx.bench.statistics import RatioEstimate, Series, ratio_of_speeds
from dynx.speculation.loops import loop_start

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Key: TypeAlias = "tuple[str, str]"
ALL = "all"


@dataclass(frozen=True)
class Answers:
    """The answers of all arms to the same questions in the same rounds, by arm; rows are rounds."""

    questions: Sequence[tuple[str, str]]
    """Id and kind."""
    rounds: int
    by_arm: dict[Key, list[list[dict[str, Any]]]]

    def of_kind(self, kind: str) -> Answers:
        """Return the answers to one kind of questions."""
        return self._at([i for i, (_, own) in enumerate(self.questions) if kind in (own, ALL)])

    def without_loops(self) -> Answers | None:
        """Return the answers to questions on which no arm repeats itself over and over; None where that is all or nothing."""
        loops = [any(loop_start(row[i]["tokens"]) for rows in self.by_arm.values() for row in rows) for i in self._all]
        return self._at([i for i in self._all if not loops[i]]) if any(loops) and not all(loops) else None

    @property
    def _all(self) -> range:
        return range(len(self.questions))

    def _at(self, at: Sequence[int]) -> Answers:
        chosen = {arm: [[row[i] for i in at] for row in rows] for arm, rows in self.by_arm.items()}
        return Answers([self.questions[i] for i in at], self.rounds, chosen)

    def series(self, arm: Key) -> Series:
        """Return tokens and seconds, rounds × questions."""
        rows = self.by_arm[arm]
        return Series([[len(e["tokens"]) for e in row] for row in rows], [[e["seconds"] for e in row] for row in rows])

    def speed(self, arm: Key) -> float:
        """Return tokens per second over all of them."""
        series = self.series(arm)
        return sum(map(sum, series.units)) / sum(map(sum, series.seconds))

    def flat(self, arm: Key) -> list[dict[str, Any]]:
        """Return an arm's answers in a row."""
        return [entry for row in self.by_arm[arm] for entry in row]


def gather(entries: Sequence[dict[str, Any]]) -> Answers:
    """Return what all arms answered that didn't fail; a round counts once all of them have a question in common with it."""
    answers = [e for e in entries if "tokens" in e]
    failed = {(e["peer"], e["arm"]) for e in entries if "error" in e}
    arms = sorted({(e["peer"], e["arm"]) for e in answers} - failed)
    found = {(e["round"], e["question"], e["peer"], e["arm"]): e for e in answers}
    rounds = sorted({e["round"] for e in answers})
    kinds = {e["question"]: e["kind"] for e in answers}

    def complete(number: int, question: str) -> bool:
        return all((number, question, *arm) in found for arm in arms)

    questions = [q for q in kinds if complete(0, q)]
    whole = [r for r in rounds if all(complete(r, q) for q in questions)]
    return Answers(
        [(q, kinds[q]) for q in questions],
        len(whole),
        {arm: [[found[r, q, *arm] for q in questions] for r in whole] for arm in arms},
    )


def baselines(answers: Answers) -> dict[str, Key]:
    """Return the arms that dynx's are compared with, under their names: each peer's plain and best, dynx's plain and best static.

    The best are chosen in hindsight, over all questions.
    """
    found: dict[str, Key] = {}
    for peer in sorted({peer for peer, _ in answers.by_arm}):
        own = [arm for arm in answers.by_arm if arm[0] == peer]
        others = [arm for arm in own if arm[1] not in ("plain", "auto")]
        if (peer, "plain") in own:
            found[f"{peer} plain"] = (peer, "plain")
        if others:
            found[f"{peer}'s best"] = max(others, key=answers.speed)
    return found


def ratio(answers: Answers, arm: Key, baseline: Key) -> RatioEstimate | None:
    """Return how many times as fast the arm is; None where a round has no tokens."""
    pair = answers.series(arm), answers.series(baseline)
    if not answers.rounds or not all(speed > 0 for series in pair for speed in series.speeds()):
        return None
    return ratio_of_speeds(*pair, rng=random.Random(0))


def summary(answers: Answers) -> list[dict[str, Any]]:
    """Return a record for each arm: speeds and ratios by kind, tokens a pass, equal texts, time to the first token."""
    against = baselines(answers)
    kinds = [ALL, *(kind for kind in KINDS if any(own == kind for _, own in answers.questions))]
    parts = {kind: answers.of_kind(kind) for kind in kinds}
    if (plain_text := answers.without_loops()) is not None:
        parts[f"{len(plain_text.questions)} without loops"] = plain_text
    rows = []
    for arm in answers.by_arm:
        flat = answers.flat(arm)
        passes = [e["passes"] for e in flat]
        same = None
        if ("dynx", "plain") in answers.by_arm:
            plain = answers.flat(("dynx", "plain"))
            same = sum(a["tokens"] == b["tokens"] for a, b in zip(flat, plain, strict=True)) / len(flat)
        ratios: dict[str, Any] = {}
        if arm == ("dynx", "auto") or arm[1] == "plain":
            for name, baseline in against.items():
                if baseline != arm:
                    found = {kind: ratio(part, arm, baseline) for kind, part in parts.items()}
                    ratios[name] = {"arm": " ".join(baseline)} | {k: r and asdict(r) for k, r in found.items()}
        rows.append(
            {
                "peer": arm[0],
                "arm": arm[1],
                "speed": {kind: part.speed(arm) for kind, part in parts.items()},
                "ratios": ratios,
                "tokens_per_pass": None
                if None in passes
                else sum(max(len(e["tokens"]) - 1, 0) for e in flat) / max(sum(passes), 1),
                "equal_to_dynx_plain": same,
                "first_token_seconds": median([e["first"] for e in flat if e["first"] is not None] or [0.0]) or None,
                "others_share": sum(e["idle"] for e in flat) / sum(e["seconds"] for e in flat),
                "foreign_share": sum(e.get("foreign", 0.0) for e in flat) / sum(e["seconds"] for e in flat),
                "tokens": sum(len(e["tokens"]) for e in flat),
            }
        )
    return rows


def report(entries: Sequence[dict[str, Any]], to: Path | None) -> None:
    """Print the tables of every model and precision, and write them as JSON."""
    document = []
    for model, precision in dict.fromkeys((e["model"], e["precision"]) for e in entries):
        own = [e for e in entries if (e["model"], e["precision"]) == (model, precision)]
        answers = gather([e for e in own if "start" not in e and "batch" not in e])
        rows = summary(answers) if answers.rounds else []
        measured = [e for e in own if "start" in e or "batch" in e]
        failed = [
            {"peer": e["peer"], "arm": e["arm"], "error": e.get("failed", e.get("error"))}
            for e in own
            if "failed" in e or "error" in e
        ]
        head = f"{model}, {precision}: {len(answers.questions)} questions, {answers.rounds} rounds"
        document.append({"model": model, "precision": precision, "answers": rows, "other": measured, "failed": failed})
        lines = [head, *(answer_lines(rows) if rows else []), *other_lines(measured)]
        lines += [f"{e['peer']} {e['arm']} failed: {e['error']}" for e in failed]
        sys.stdout.write("\n".join(lines) + "\n")
    if to is not None:
        to.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def answer_lines(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the table of speeds, then the ratios of dynx's arms."""
    kinds = list(rows[0]["speed"])
    lines = ["", f"| tokens/s | {' | '.join(kinds)} | tokens a pass | same text | first token |"]
    lines.append("| --- |" + " ---: |" * (len(kinds) + 3))
    for row in rows:
        cells = [f"{row['speed'][kind]:.1f}" for kind in kinds]
        cells.append("–" if row["tokens_per_pass"] is None else f"{row['tokens_per_pass']:.2f}")
        cells.append("–" if row["equal_to_dynx_plain"] is None else f"{100 * row['equal_to_dynx_plain']:.0f} %")
        first = row["first_token_seconds"]
        cells.append("–" if first is None else f"{1e3 * first:.0f} ms")
        where = " (the file)" if row["peer"] == "llama" else ""
        lines.append(f"| {row['peer']}{where} {row['arm']} | {' | '.join(cells)} |")
    lines += ["", f"| ratio | {' | '.join(kinds)} |", "| --- |" + " ---: |" * len(kinds)]
    for row in rows:
        if row["peer"] != "dynx":
            continue
        for name, found in row["ratios"].items():
            cells = [_ratio_text(found[kind]) for kind in kinds]
            lines.append(f"| dynx {row['arm']} to {name} ({found['arm']}) | {' | '.join(cells)} |")
    peers, all_ = (max((row[key] for row in rows), default=0.0) for key in ("others_share", "foreign_share"))
    said = f"the other peers took at most {100 * peers:.1f} % of a processor's time meanwhile, everything else {100 * all_:.1f} %"
    return [*lines, "", said]


def _ratio_text(found: dict[str, Any] | None) -> str:
    if found is None:
        return "–"
    bounded = found["low"] > 0 and found["high"] < float("inf")
    return f"{found['ratio']:.2f}x" + (f" [{found['low']:.2f}, {found['high']:.2f}]" if bounded else "")


def other_lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    """Return the tables of starts and of batches."""
    lines: list[str] = []
    begun = [e for e in entries if "start" in e]
    if begun:
        lines += ["", "| start | load | first token | 1,500 tokens read in | peak memory |", "| --- |" + " ---: |" * 4]
    for e in begun:
        read = e["prompt_seconds"]
        first = "–" if e["first"] is None else f"{e['first']:.2f} s"
        cells = [f"{e['load']:.2f} s", first, f"{read[0]:.3f} s" if read else "–", f"{e['memory'] / 2**20:.0f} MiB"]
        lines.append(f"| {e['peer']} {e['arm']}, {e['start']} | {' | '.join(cells)} |")
    batches = [e for e in entries if "batch" in e]
    if batches:
        lines += ["", "| batch | tokens/s | seconds | first answer | peak memory |", "| --- |" + " ---: |" * 4]
    for e in batches:
        first = "–" if e["first"] is None else f"{e['first']:.2f} s"
        cells = [f"{e['count'] / e['seconds']:.1f}", f"{e['seconds']:.2f}", first, f"{e['memory'] / 2**20:.0f} MiB"]
        lines.append(f"| {e['batch']}: {e['peer']} {e['arm']} | {' | '.join(cells)} |")
    return lines
