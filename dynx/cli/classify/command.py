"""`dynx classify`: labels texts or pictures, in the order of the input and each as soon as it is known."""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeAlias

from dynx.cli.classify.output import Document, JsonLines, Table, resume
from dynx.cli.classify.records import MAX_WINDOW_RECORDS, layout, read_records, windows
from dynx.cli.console import Terminal
from dynx.cli.forms import form_of, reading
from dynx.cli.jobs import is_job, run_job
from dynx.cli.pieces import shown
from dynx.cli.remedy import calibrate_command, telling_the_remedy
from dynx.errors import DynxError, GateFailed, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from dynx.cli.classify.accuracy import Tally
    from dynx.cli.classify.entities import EntityTable
    from dynx.cli.classify.output import Resumed
    from dynx.cli.classify.ranking import RankLines, RankTable
    from dynx.cli.classify.records import Record, Records
    from dynx.cli.options.classify import Options
    from dynx.early_exit.assembly import LoadedClassifier
    from dynx.early_exit.group_classifier import AnyClassifier
    from dynx.early_exit.items import Pair, Query
    from dynx.early_exit.plan import ClassifierPlan
    from dynx.early_exit.types import Entities, Prediction, Receipt

AnyFormat: TypeAlias = "Table | JsonLines | RankTable | RankLines | EntityTable"

MAX_EXPLAINED_INPUTS = 5
"""Largest number of inputs that ran all layers which --explain lists."""

NOT_IN_JOBS = (
    "inputs",
    "nul",
    "tsv",
    "skip_empty",
    "scores",
    "labels",
    "resume",
    "json",
    "stats",
    "explain",
    "verify",
)
"""Options that don't go with --input."""

MAX_WINDOW_GROUPS = 64
"""Largest number of inputs that are several pairs each, in a window: results come as soon as it is done."""

BAR_CHARS = 30
"""Width of a full bar of --explain, in characters."""


def run(options: Options) -> None:
    """Read, label and write. Raises DynxError at the end where some inputs couldn't be read."""
    from dynx.early_exit import make_plan

    check(options)
    if options.input is not None and options.group is not None:
        hint = "--rank, where each row holds a query and the list of its documents"
        raise UsageError("--input and --group exclude each other", hint=hint)
    if is_job(options, only=("output",), never=NOT_IN_JOBS) and not options.dry_run:
        work_off(options)
        return
    terminal = Terminal(
        quiet=options.quiet, verbose=options.verbose, color=options.color, json=options.json or options.jsonl
    )
    request = options.request()
    with telling_the_remedy(request):
        plan = make_plan(request, warn=terminal.warn)
    if options.dry_run:
        from dynx.cli.dry_run import chosen_from_profile, print_plan

        exits = (
            {} if plan.decisions.exits is not None else {"exits": chosen_from_profile("none", options, plan.profile)}
        )
        print_plan("classify", plan, options, terminal, exits)
        return
    records = open_records(options, images=plan.kind == "image")
    records.begin()
    assembly = open_assembly(plan, terminal, quick_start=not options.certify)
    labels = len(plan.request.candidates or assembly.labels.names)
    form = format_of(options, terminal, labels, tokens=plan.kind == "tokens")
    resumed = resume(Path(options.resume), form) if options.resume else None
    job = Job(options, terminal, assembly, form, open_tally(options, assembly))
    with output(resumed) as out:
        job.run(records, resumed, out)
    job.aside(records)
    if options.verify:
        verified(job.classifier, options)
    if job.errors:
        raise DynxError(f"{job.errors} of {job.seen} inputs could not be labelled; the output has the reason")


def work_off(options: Options) -> None:
    """Label the rows of files as a job. Raises DynxError."""
    from dynx.early_exit.items import GROUPED
    from dynx.jobs.functions import Classify
    from dynx.jobs.groups import ClassifyGroups

    request = options.request()
    grouped, audit = request.form in GROUPED, options.audit > 0
    for name, given in (("--certify", options.certify), ("--audit", audit)):
        if given and grouped:
            raise UsageError(f"{name} in jobs is for inputs that are one row each; here the profile's guarantee holds")
    if options.top_k is not None and request.form != "ranking":
        raise UsageError("--input and --top-k exclude each other, except with --rank")
    function = (ClassifyGroups if grouped else Classify)(**vars(request), audit=options.audit)
    run_job(options, function, request, {"audit": options.audit}, certify=options.certify, audit=audit)


def check(options: Options) -> None:
    """Check options that exclude each other. Raises UsageError."""
    if options.json and options.jsonl:
        raise UsageError("--json and --jsonl exclude each other")
    if options.scores and options.top_k is not None:
        raise UsageError("--scores and --top-k exclude each other")
    if options.certify and options.plain:
        raise UsageError("--certify and --plain exclude each other: plain execution has no exits to certify")
    if options.verify and options.audit:
        raise UsageError("--verify and --audit exclude each other: --verify checks every answer")
    if options.resume and options.json:
        raise UsageError("a JSON document can't be resumed", hint="use JSON lines: --jsonl --resume OUT")
    form = form_of(options)
    if form == "ranking" and options.scores:
        raise UsageError("--scores is for labels; --rank without --top-k prints every document")
    if options.per_class and (options.certify or options.audit or options.verify):
        raise UsageError(
            "--per-class is tested on calibration's inputs; --certify, --audit and --verify test all labels at once"
        )
    if options.resume and options.labels:
        raise UsageError("--labels needs the whole input, so it can't be used with --resume")


def open_records(options: Options, *, images: bool) -> Records:
    """Return the inputs. Raises UsageError if there are none."""
    shape = layout(
        nul=options.nul,
        tsv=options.tsv,
        column=options.column,
        field=options.field,
        **reading(options),
        images=images,
        skip_empty=options.skip_empty,
    )
    records = read_records(options.inputs or [], sys.stdin.buffer, shape, never=options.no_stdin)
    if records is None:
        what = "cat.png" if images else "'What a fine day'"
        raise UsageError("nothing to classify", hint=f"for example: dynx classify {what}, or a text per line on stdin")
    return records


def open_assembly(plan: ClassifierPlan, terminal: Terminal, *, quick_start: bool = False) -> LoadedClassifier:
    """Load the model; print its decisions with -v, and on a terminal why there are no exits.

    `quick_start`: it may begin on what loads first, and move to what is faster later.
    """
    from dynx.early_exit import assemble

    with telling_the_remedy(plan.request):
        assembly = assemble(plan, stages=terminal.status, warn=terminal.warn, quick_start=quick_start)
    terminal.startup.mark("first batch")
    terminal.clear_status()
    for knob, decision in assembly.decisions.items():
        terminal.detail(f"{knob}: {decision.value} ({decision.reason})")
    unwanted = plan.request.plain or plan.request.profile == "none"
    if not assembly.exits_early and not unwanted and terminal.interactive:
        remedy = f"; {calibrate_command(plan.request)}" if plan.profile is None else ""
        terminal.notice(f"every layer runs: {assembly.why_full_depth}{remedy}")
    return assembly


def format_of(options: Options, terminal: Terminal, labels: int, *, tokens: bool = False) -> AnyFormat:
    """Return the format of answers for a model with `labels` labels; `tokens`: of the tokens of a text."""
    single = options.inputs is not None and len(options.inputs) == 1 and options.inputs != ["-"]
    if tokens:
        from dynx.cli.classify.entities import EntityDocument, EntityLines, EntityTable

        if options.scores or options.top_k is not None:
            raise UsageError(f"{'--scores' if options.scores else '--top-k'} is for models that label whole inputs")
        if options.jsonl:
            return EntityLines(ascii_only=not terminal.unicode)
        return EntityDocument(ascii_only=not terminal.unicode, single=single) if options.json else EntityTable()
    if form_of(options) == "ranking":
        from dynx.cli.classify.ranking import RankDocument, RankLines, RankTable

        if options.jsonl:
            return RankLines(ascii_only=not terminal.unicode)
        return RankDocument(ascii_only=not terminal.unicode) if options.json else RankTable()
    shown = options.top_k and min(options.top_k, labels)
    if options.jsonl:
        return JsonLines(shown, ascii_only=not terminal.unicode)
    if options.json:
        return Document(shown, ascii_only=not terminal.unicode, single=single)
    return Table(labels if options.scores else shown or 1)


def open_tally(options: Options, assembly: LoadedClassifier) -> Tally | None:
    """Return the true labels to compare with. Raises UsageError."""
    if options.labels is None:
        return None
    from dynx.cli.classify.accuracy import Tally, read_gold

    if form_of(options) not in ("text", "pair") or assembly.plan.kind == "tokens":
        raise UsageError("--labels is for models that label each text or pair")
    if assembly.labels.problem != "single":
        raise UsageError(
            "--labels needs a model with one label per input; this one is multi-label or a regression model"
        )
    truth = read_gold(Path(options.labels), assembly.labels.names, quoted=options.tsv)
    return Tally(truth, confidence=options.confidence)


@contextlib.contextmanager
def output(resumed: Resumed | None) -> Iterator[TextIO | None]:
    """Open the file to continue; None means stdout."""
    if resumed is None:
        yield None
        return
    try:
        with resumed.path.open("a", encoding="utf-8") as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as e:
        raise DynxError(f"can't write {resumed.path}: {e.strerror or e}") from None


class Job:
    """One run over all records."""

    def __init__(
        self,
        options: Options,
        terminal: Terminal,
        assembly: LoadedClassifier,
        form: AnyFormat,
        tally: Tally | None,
    ) -> None:
        from dynx.early_exit.group_classifier import make_classifier

        self._options, self._terminal, self._assembly = options, terminal, assembly
        self._tally = tally
        self._form = form
        self.classifier: AnyClassifier = make_classifier(
            assembly, audit=float(options.verify) or options.audit, on_alarm=terminal.warn
        )
        self.seen = self.errors = 0
        self._warned = False
        self._deep: deque[tuple[str, Record]] = deque(maxlen=MAX_EXPLAINED_INPUTS)

    @property
    def receipt(self) -> Receipt:
        """Return the statistics so far."""
        return self.classifier.receipt

    def run(self, records: Records, resumed: Resumed | None, out: TextIO | None) -> None:
        """Label all records. On an interruption, write the finished answers and the end of a JSON document."""
        todo: Iterable[Record] = records
        if resumed is not None:
            todo = resumed.skip(records)
            if resumed.done:
                self._terminal.notice(f"{resumed.path} has {resumed.done} results; continuing after them")
        if self._options.certify:
            todo = self._certify(todo)
        ahead = 8 * self._assembly.batch
        most = ahead if self._assembly.plan.kind == "image" else max(MAX_WINDOW_RECORDS, ahead)  # pixels take room
        if form_of(self._options) not in ("text", "pair"):
            most = MAX_WINDOW_GROUPS
        stream = windows(todo, most)
        try:
            for window in stream:
                predictions = self._predict(window)
                self._terminal.first("first label")
                self._promise()
                self._write(self._form.render(zip(window, predictions, strict=True)), out)
                self._note(window, predictions)
                self._progress(out)
        finally:
            stream.close()
            self._terminal.clear_status()
            self._write(self._form.close(), out)

    def _certify(self, todo: Iterable[Record]) -> list[Record]:
        """Read all records and certify a rule on a sample of them. Returns the records."""
        from dynx.early_exit.group_certificate import certify

        everything = list(todo)
        good = [record for record in everything if record.error is None]
        self._terminal.status("certifying on a sample")
        words = certify(self.classifier, [item_of(record) for record in good])
        self._terminal.clear_status()
        self._terminal.notice(words)
        return everything

    def _predict(self, window: Sequence[Record]) -> list[Any]:
        from dynx.early_exit.types import Entities, Prediction, Ranking

        good = [record for record in window if record.error is None]
        answers = iter(self.classifier.window([item_of(record) for record in good]))
        tokens = self._assembly.plan.kind == "tokens"
        kind: Any = Ranking if form_of(self._options) == "ranking" else Entities if tokens else Prediction
        return [next(answers) if record.error is None else kind.failed(record.error) for record in window]

    def _promise(self) -> None:
        """Set the guarantee that JSON states for the answers that follow."""
        if hasattr(self._form, "guarantee"):
            guarantee = self.receipt.guarantee
            self._form.guarantee = guarantee.json() if guarantee else None

    def _write(self, text: str, out: TextIO | None) -> None:
        if out is None:
            if text:
                self._terminal.write(text)
        else:
            out.write(text)
            out.flush()

    def _note(self, window: Sequence[Record], predictions: Sequence[Any]) -> None:
        """Add answers to the statistics, and warn once of truncated texts."""
        from dynx.early_exit.types import Ranking

        if self.receipt.truncated and not self._warned:
            self._warned = True
            limit = getattr(self._assembly.preprocessor, "limit", None)
            self._terminal.warn(f"texts longer than {limit} tokens are truncated; the count follows at the end")
        for record, prediction in zip(window, predictions, strict=True):
            self.seen += 1
            self.errors += prediction.error is not None
            if isinstance(prediction, Ranking):
                continue
            if self._tally is not None:
                self._tally.add(record.index, prediction.label)
            if (
                self._options.explain
                and prediction.error is None
                and prediction.exit is None
                and self.classifier.exiting
            ):
                self._deep.append((summary_of(prediction), record))

    def _progress(self, out: TextIO | None) -> None:
        """Update a progress line, where stdout doesn't show the progress."""
        if out is not None or not sys.stdout.isatty():
            rate = self.receipt.per_second
            self._terminal.status(f"{self.seen:,} done{f', {rate:,.0f}/s' if rate else ''}")

    def aside(self, records: Records) -> None:
        """Print the statistics to stderr: accuracy, cost, and skipped inputs."""
        terminal, receipt = self._terminal, self.receipt
        if receipt.truncated:
            terminal.warn(f"{receipt.truncated:,} of {receipt.inputs:,} texts were truncated")
        if records.skipped:
            terminal.notice(f"{records.skipped:,} empty texts skipped")
        if self._tally is not None:
            audit = self.classifier.audit
            if audit is not None:
                self._tally.agreed(audit.n - audit.disagreements, audit.n)
            _rows(self._tally.report(records.rows).rows())
        if self._options.explain:
            _rows([(knob, f"{d.value} ({d.reason})") for knob, d in self._assembly.decisions.items()])
            self._histogram()
        if self._options.stats:
            _rows(receipt_rows(self.classifier, self._assembly))
        elif terminal.interactive:
            terminal.notice(receipt_line(receipt))
        if self.classifier.audit is not None and self.classifier.audit.n:
            terminal.notice(str(self.classifier.audit))
        elif self._options.verify and not self.classifier.exiting:
            terminal.notice("verified: no input exited early, so every answer is the full model's")

    def _histogram(self) -> None:
        receipt = self.receipt
        most = max(receipt.exit_counts.values(), default=0)
        full = "█" if (sys.stderr.encoding or "").lower().replace("-", "") == "utf8" else "#"
        rows = []
        for layer in sorted(receipt.exit_counts):
            count = receipt.exit_counts[layer]
            bar = full * max(1, round(BAR_CHARS * count / most))
            where = "all layers" if layer == receipt.depth else f"layer {layer}"
            rows.append((where, f"{bar} {count:,} ({count / receipt.exit_counts.total():.0%})"))
        _rows(rows)
        for answer, record in self._deep:
            text = shown(record.raw if len(record.raw) <= 60 else record.raw[:59] + "…")
            sys.stderr.write(f"all layers: {answer}  {text}\n")


def verified(classifier: AnyClassifier, options: Options) -> None:
    """Raise GateFailed where more answers differ from the full model's than the promise allows."""
    audit = classifier.audit
    if audit is not None and audit.disagreements > options.max_disagreement * audit.n:
        raise GateFailed(
            f"--verify: {audit.disagreements:,} of {audit.n:,} answers differ from the full model's, more than "
            f"{options.max_disagreement:.2g} of them"
        )


def summary_of(answer: Prediction | Entities) -> str:
    """Return an answer in a few words."""
    from dynx.early_exit.types import Prediction

    if isinstance(answer, Prediction):
        return f"{answer.label} {answer.score:.2f}"
    return ", ".join(f"{each.label} {shown(each.word)}" for each in answer.entities) or "no entities"


def item_of(record: Record) -> str | Path | Pair | Query:
    """Return a record as the classifier takes it."""
    from dynx.early_exit.items import Pair, Query

    item = record.path if record.path is not None else record.text
    if item is None:
        raise ValueError("a record with an error has no input")
    if record.documents is not None and record.text is not None:
        return Query(record.text, record.documents)
    return item if record.text_pair is None or not isinstance(item, str) else Pair(item, record.text_pair)


def _rows(rows: Sequence[tuple[str, str]]) -> None:
    width = max((len(label) for label, _ in rows), default=0)
    sys.stderr.write("".join(f"{label:<{width}}  {value}\n" for label, value in rows))


def receipt_line(receipt: Receipt) -> str:
    """Format what a job saved as one line."""
    parts = [f"{receipt.inputs:,} input{'' if receipt.inputs == 1 else 's'}"]
    if receipt.inputs > 1 and receipt.per_second:
        parts[0] += f" at {receipt.per_second:,.0f}/s"
    if receipt.mean_layers is not None:
        parts.append(f"{receipt.mean_layers:.2f} of {receipt.depth} layers")
    parts.append(str(receipt.guarantee) if receipt.guarantee else "no bound holds for these answers")
    return " · ".join(parts)


def _why_none(classifier: AnyClassifier, assembly: LoadedClassifier) -> str:
    if classifier.audit is not None and classifier.audit.alarmed:
        return " any more (the audit ended them)"
    return f" ({assembly.why_full_depth})" if not assembly.exits_early else ""


def receipt_rows(classifier: AnyClassifier, assembly: LoadedClassifier) -> list[tuple[str, str]]:
    """Return all statistics, for --stats."""
    receipt = classifier.receipt
    inputs = [f"{receipt.inputs:,}"]
    inputs += [
        f"{n:,} {what}"
        for n, what in ((receipt.repeated, "repeated"), (receipt.truncated, "cut"), (receipt.errors, "unreadable"))
        if n
    ]
    rows = [("inputs", ", ".join(inputs))]
    if receipt.rows:
        rows.append(("pairs", f"{receipt.rows:,}"))
    if receipt.per_second:
        rows.append(("speed", f"{receipt.per_second:,.1f}/s, {receipt.seconds:.3f} s"))
    if receipt.mean_layers is not None:
        rows.append(("layers", f"{receipt.mean_layers:.2f} of {receipt.depth} on average"))
        saved = 1 - receipt.layers / (receipt.depth * (receipt.rows or receipt.inputs - receipt.errors))
        rows.append(("saved", f"{saved:.0%} of the layers"))
    if receipt.backend:
        rows.append(("backend", receipt.backend))
    if receipt.audit_layers:
        rows.append(("audit", f"{receipt.audit_layers:,} layers, not counted above"))
    profile = assembly.plan.profile
    if not classifier.exiting:
        rows.append(("exits", f"none{_why_none(classifier, assembly)}"))
    rows.append(("guarantee", str(receipt.guarantee) if receipt.guarantee else "none"))
    rows.append(("profile", profile.key.id if profile else "none"))
    return rows
