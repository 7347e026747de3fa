"""Write what is derived from the receipts of a job once all of its rows are done: errors, statistics and the mark of success."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from dynx.errors import InvalidInput
from dynx.jobs.promise import audit_statement
from dynx.jobs.store import PARTS, RECEIPTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from dynx.jobs.store import Manifest, Store

ALARM = "_dynx/alarm.json"


def finish(store: Store, manifest: Manifest, receipts: Iterable[str], rows: int, delta: float | None) -> dict[str, Any]:
    """Write the errors, the statistics and the mark of success of a job of `rows` rows; return the statistics.

    `receipts` are the names of what is done, in order; `delta` is that of the audit, None where there was none. Raises
    InvalidInput where receipts are missing.
    """
    totals: Counter[str] = Counter()
    kinds: dict[str, dict[str, float]] = {}
    errors: list[Mapping[str, Any]] = []
    outcomes: list[bool] = []
    done, parts = 0, set()
    for name in receipts:
        receipt = store.read_json(f"{RECEIPTS}/{name}.json")
        done += receipt["rows"]
        parts.add(receipt["part"])
        totals.update(receipt["totals"])
        kind = kinds.setdefault(receipt["kind"], {"rows": 0, "seconds": 0.0})
        kind["rows"] += receipt["rows"]
        kind["seconds"] += receipt["seconds"]
        errors += receipt["errors"]
        outcomes += [bool(differs) for _, differs in receipt["audit"]]
    if done != rows:
        raise InvalidInput(f"{store.address} has {done:,} of {rows:,} rows: its folder was changed")
    alarm = store.read_json(ALARM)
    stats: dict[str, Any] = {
        "schema": "dynx.job/1",
        "rows": rows,
        "errors": len(errors),
        "totals": dict(totals),
        "kinds": kinds,
        "guarantee": None if alarm is not None else _guarantee(manifest),
        "certificate": manifest.certificate,
        "audit": None if delta is None else audit_statement(rows, outcomes, delta, alarm),
    }
    store.keep_only(PARTS, parts)
    lines = (json.dumps(error, ensure_ascii=False) for error in errors)
    store.write("errors.jsonl", "".join(f"{line}\n" for line in lines).encode("utf-8", "replace"))
    store.write_json("stats.json", stats)
    store.write("_SUCCESS", b"")
    return stats


def _guarantee(manifest: Manifest) -> dict[str, Any] | None:
    """Return the guarantee of all answers: the certificate's, or what the profile gives."""
    model, certificate = manifest.model, manifest.certificate
    if certificate is None:
        found = model.get("guarantee")
    else:
        found = model.get("full_depth_guarantee") if certificate["thresholds"] is None else certificate["guarantee"]
    return None if found is None else dict(found)
