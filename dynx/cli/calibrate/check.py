"""`dynx calibrate --check`: tests the promise of a stored profile on fresh inputs.

The measuring is that of `dynx bench`. A language model's profile promises the same tokens and a speed; a classifier's that few
labels differ; a pipeline's that most pictures look like the full run's. A promise is broken when the measurement rules it out.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from dynx.cli.bench import classification as bench_classification
from dynx.cli.bench import command as bench
from dynx.cli.bench import drawing as bench_drawing
from dynx.cli.bench import generation as bench_generation
from dynx.cli.bench import measure
from dynx.cli.calibration_data import read_inputs, read_prompts
from dynx.cli.console import Terminal
from dynx.cli.options.bench import Request
from dynx.errors import NoProfileError, UsageError

if TYPE_CHECKING:
    from dynx.bench.result import BenchResult
    from dynx.cli.bench.task import PlannedRun, TaskModule
    from dynx.cli.options.calibrate import Options
    from dynx.runtime.profile import Profile

MAX_SHORTFALL = 0.2
"""Share of the promised speed that may be missing, since other texts or other load on the machine can cost as much."""

CHECKED_PICTURES = 60
"""Number of pictures to compare: the smallest at which a few can break a promise for 95 % of pictures."""


def check(options: Options, terminal: Terminal) -> None:
    """Measure, print and decide. Raises GateFailed for a broken promise, NoProfileError where no profile fits."""
    unused = {"--dry-run": options.dry_run, "--plot": options.plot, "--negative": options.negative}
    for name, value in unused.items():
        if value:
            raise UsageError(f"--check tests a stored profile and doesn't take {name}")
    asked = request_of(options)
    module = bench.task_of(asked)
    plan = module.make_plan(asked, Terminal(quiet=2))
    profile = plan.profile
    if profile is None or profile.key.form != plan.key.form:
        raise NoProfileError(absent(plan), hint=f"dynx calibrate -m {options.model} measures one")
    asked = replace(asked, **promised(profile, options, module))
    bench.check_tasks(asked, [(asked, module)])
    refuse_learned(asked, module, plan, profile)
    prepared = module.prepare(asked, terminal)
    header = prepared.header
    if "guarantee" in header and header["guarantee"] is None:
        reason = (header.get("exits") or header.get("steps") or {}).get("reason", "no guarantee")
        raise NoProfileError(f"profile {profile.key.id} makes no promise here: {reason}")
    result = measure.measured(prepared, asked, [], terminal)
    result = replace(result, notes=(*result.notes, f"profile {profile.key.id} was measured {profile.created}"))
    if not options.json:
        bench.show(result, terminal, titled=False)
        terminal.write(f"{verdict(result, profile)}\n")
    bench.finish([result], [], asked, terminal)


def request_of(options: Options) -> Request:
    """Return the request of a measurement with the same model and data, and no gates."""
    return Request(
        model=options.model,
        data=options.data,
        tsv=options.tsv or None,
        column=options.column,
        field=options.field,
        pair=options.pair,
        rank=options.rank or None,
        group=options.group,
        candidates=options.candidates,
        hypothesis=options.hypothesis if options.candidates else None,
        multi_label=options.multi_label or None,
        aggregation_strategy=options.aggregation_strategy,
        per_class=options.per_class or None,
        top_k=options.top_k,
        chat=options.chat or None,
        system=options.system,
        max_length=options.max_length,
        within=options.within,
        quality=options.quality,
        guidance=options.guidance,
        size=options.size,
        lora=options.lora,
        image=options.image,
        strength=options.strength,
        mask=options.mask,
        control_image=options.control_image,
        control_scale=options.control_scale,
        budget=options.budget,
        device=options.device,
        dtype=options.dtype,
        threads=options.threads,
        backend=options.backend,
        quantize=options.quantize,
        allow_pickle=options.allow_pickle,
        trust_remote_code=options.trust_remote_code,
        offline=options.offline,
        json=options.json,
        quiet=options.quiet,
        verbose=options.verbose,
        color=options.color,
    )


def promised(profile: Profile, options: Options, module: TaskModule) -> dict[str, Any]:
    """Return the gates that test a profile's promise, and the settings of a measurement that decides them."""
    if module is bench_generation:
        speed = max(1.0, float(profile.evidence["predicted_speedup"]))
        gates = {"min_speedup": speed, "tolerance": f"{100 * MAX_SHORTFALL:g}%", "require_identical": True}
        return {**gates, "draft": options.draft, "static": "none"}
    bench_options: dict[str, Any] = {"runs": 1}
    if options.draft != "auto":
        bench_options["draft"] = options.draft  # so that it is refused
    if module is bench_classification:
        from dynx.early_exit.plan import MAX_DISAGREEMENT

        share = options.max_disagreement
        if share == MAX_DISAGREEMENT:  # nothing else was asked for: what the profile was made for
            share = float(profile.fitted.get("max_disagreement", MAX_DISAGREEMENT))
        own = {"max_disagreement": share, "confidence": options.confidence, "batch_size": options.batch_size}
        return bench_options | own
    quality = bench_drawing.Settings.quality if options.quality is None else options.quality
    return bench_options | {"min_quality": quality, "static": "none", "prompts": CHECKED_PICTURES}


def absent(plan: PlannedRun) -> str:
    """Return why there is no profile to test: none is stored, or one of another device, version or model."""
    from dynx.runtime.profile_store import ProfileStore, device_name, profiles_folder

    store = ProfileStore(profiles_folder(), lambda _: None)
    near = store.near(plan.key)
    if near:
        profile, _ = near[0]
        said = profile.key.told_apart(plan.key, device_name(profile))
        return f"profile {profile.key.id} of {profile.model_name} was measured {said}"
    stale = [reason for p in store.list() if p.key == plan.key and (reason := store.stale(p))]
    if stale:
        return f"the profile of {plan.source.name} can't be used: {stale[0]}"
    return f"no profile of {plan.source.name} is stored"


def refuse_learned(request: Request, module: TaskModule, plan: PlannedRun, profile: Profile) -> None:
    """Raise UsageError for the inputs that the profile was learned from, which test nothing."""
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.runtime.hashing import text_hash

    if request.data in (None, "-") or module is bench_generation:
        return
    if isinstance(plan, ClassifierPlan):
        rows = read_inputs(
            request.data,
            plan.kind,
            tsv=bool(request.tsv),
            column=request.column,
            field=request.field,
            forms=request,
        ).names
    else:
        rows = read_prompts(request.data)
    if profile.evidence.get("data") == text_hash(rows):
        raise UsageError(f"--data {request.data} was used for calibration; a check needs fresh inputs")


def verdict(result: BenchResult, profile: Profile) -> str:
    """Format the verdict as one line."""
    from dynx.bench.result import Verdict, overall

    said = {
        Verdict.PASS: "holds on these inputs",
        Verdict.FAIL: "is broken",
        Verdict.INCONCLUSIVE: "is neither confirmed nor ruled out",
        None: "wasn't tested",
    }
    return f"{profile.model_name}: the promise of profile {profile.key.id} {said[overall(result.gates)]}"
