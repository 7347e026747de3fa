"""`dynx calibrate --check`: does what a stored profile promises hold on inputs that it wasn't learned from?

It knows promises and leaves measuring to `dynx bench`. A language model's is the same tokens and a speed; a classifier's that few
labels differ; a pipeline's that most pictures look like the full run's. Broken means that the measurement rules the promise out.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import classification as bench_classification
from dynx.cli.bench import command as bench
from dynx.cli.bench import drawing as bench_drawing
from dynx.cli.bench import generation as bench_generation
from dynx.cli.bench import measure
from dynx.cli.bench.options import Options as BenchOptions
from dynx.cli.console import Terminal
from dynx.errors import NoProfileError, UsageError

if TYPE_CHECKING:
    from dynx.bench.report import BenchResult
    from dynx.cli.calibrate.options import Options
    from dynx.runtime.profile import Profile

SHORTFALL = 0.2
"""Of the speed promised: other texts, or a machine with other work, may well take as much."""

PICTURES = 60
"""To compare; the fewest that could break a promise for 95 % of pictures by a few of them."""


def check(options: Options, terminal: Terminal) -> None:
    """Measure, print, and judge. Raises GateFailed for a broken promise, NoProfileError where there is none to test."""
    for name in ("dry_run", "plot", "negative"):
        if getattr(options, name):
            raise UsageError(f"--check tests a stored profile and doesn't take --{name.replace('_', '-')}")
    asked = as_bench(options)
    module = bench.task_of(asked)
    plan = plan_of(asked, module, Terminal(quiet=2))
    profile = plan.profile
    if profile is None:
        raise NoProfileError(absent(plan), hint=f"dynx calibrate -m {options.model} measures one")
    asked = replace(asked, **promised(profile, options, module))
    bench.check_tasks(asked, [(asked, module)])
    refuse_learned(asked, module, plan, profile)
    prepared = module.prepare(asked, terminal)
    header = prepared.header
    if "guarantee" in header and header["guarantee"] is None:
        reason = (header.get("exits") or header.get("steps") or {}).get("reason", "nothing is promised")
        raise NoProfileError(f"profile {profile.key.id} makes no promise here: {reason}")
    result = measure.measured(prepared, asked, [], terminal)
    result = replace(result, notes=(*result.notes, f"profile {profile.key.id} was measured {profile.created}"))
    if not options.json:
        bench.show(result, terminal, titled=False)
        terminal.write(f"{verdict(result, profile)}\n")
    bench.finish([result], [], asked, terminal)


def as_bench(options: Options) -> BenchOptions:
    """The command line of a measurement with the same model and data, and nothing else asked for."""
    given = {f.name: getattr(options, f.name) for f in fields(options)}
    blank: dict[str, Any] = {f.name: False if f.type == "bool" else None for f in fields(BenchOptions)}
    same = {"data", "tsv", "column", "field", "max_length", "within", "guidance", "size", "quality", "budget", "json"}
    same |= {
        "device",
        "dtype",
        "threads",
        "backend",
        "quantize",
        "allow_pickle",
        "offline",
        "quiet",
        "verbose",
        "color",
    }
    return BenchOptions(**blank | {name: given[name] for name in same} | {"model": options.model})


def promised(profile: Profile, options: Options, module: Any) -> dict[str, Any]:
    """The gates that a profile's promise amounts to, and what of the bench decides them."""
    if module is bench_generation:
        speed = max(1.0, float(profile.evidence["predicted_speedup"]))
        gates = {"min_speedup": speed, "tolerance": f"{100 * SHORTFALL:g}%", "require_identical": True}
        return {**gates, "draft": options.draft, "static": "none"}
    bench_options: dict[str, Any] = {"runs": 1}
    if options.draft != "auto":
        bench_options["draft"] = options.draft  # so that it is refused
    if module is bench_classification:
        from dynx.early_exit.setup import EPS

        own = {name: getattr(options, name) for name in ("max_disagreement", "confidence", "batch_size")}
        if options.max_disagreement == EPS:  # nothing else was asked for: what the profile was made for
            own["max_disagreement"] = float(profile.fitted.get("max_disagreement", EPS))
        return bench_options | own
    quality = bench_drawing.Settings.quality if options.quality is None else options.quality
    return bench_options | {"min_quality": quality, "static": "none", "prompts": PICTURES}


def plan_of(options: BenchOptions, module: Any, terminal: Terminal) -> Any:
    """What would be run with which profile, before anything is loaded."""
    if module is bench_classification:
        from dynx.cli.classify.command import wish_of
        from dynx.early_exit import setup as exits

        own = bench.settings(options, bench_classification.Settings)
        return exits.make_plan(wish_of(bench_classification.wished(options, own)), warn=terminal.warn)
    if module is bench_drawing:
        return bench_drawing.make_plan(options, bench.settings(options, bench_drawing.Settings), terminal)
    from dynx.cli.generate.model import wish_of as generation_wish
    from dynx.speculation import setup as guesses

    return guesses.make_plan(generation_wish(bench_generation.defaulted(options)), warn=terminal.warn)


def absent(plan: Any) -> str:
    """Why there is nothing to test: no profile at all, or one of other circumstances."""
    from dynx.runtime.profile_store import ProfileStore, profiles_folder

    store = ProfileStore(profiles_folder(), lambda _: None)
    near = store.near(plan.key)
    if near:
        profile, differing = near[0]
        return f"profile {profile.key.id} of {profile.model_name} was measured with another {' and '.join(differing)}"
    stale = [reason for p in store.list() if p.key == plan.key and (reason := store.stale(p))]
    if stale:
        return f"the profile of {plan.source.name} can't be used: {stale[0]}"
    return f"no profile of {plan.source.name} is stored"


def refuse_learned(options: BenchOptions, module: Any, plan: Any, profile: Profile) -> None:
    """Raises UsageError for the inputs that the profile was learned from: they would say nothing."""
    from dynx.cli.calibration_data import read_inputs
    from dynx.runtime.hashing import text_hash

    if options.data in (None, "-") or module is bench_generation:
        return
    if module is bench_classification:
        rows = read_inputs(options.data, plan.kind, tsv=options.tsv, column=options.column, field=options.field).names
    else:
        rows = bench.read_prompts(options.data)
    if profile.evidence.get("data") == text_hash(rows):
        raise UsageError(f"--data {options.data} was used for calibration; a check needs fresh inputs")


def verdict(result: BenchResult, profile: Profile) -> str:
    """In a line."""
    from dynx.bench.gates import Verdict, overall

    said = {
        Verdict.PASS: "holds on these inputs",
        Verdict.FAIL: "is broken",
        Verdict.INCONCLUSIVE: "is neither confirmed nor ruled out",
        None: "wasn't tested",
    }
    return f"{profile.model_name}: the promise of profile {profile.key.id} {said[overall(result.gates)]}"
