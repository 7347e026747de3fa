"""The report as one HTML page that needs nothing else: no network, no script, light and dark by the reader's preference.

What the drawings show is said in words and in a table too.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, Any

from dynx.bench import table
from dynx.bench.exports import charts, figures
from dynx.bench.exports.scene import DARK, FONT, LIGHT, styles, to_svg
from dynx.bench.gates import overall

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dynx.bench.exports.scene import Scene
    from dynx.bench.report import ArmResult, BenchResult

MARKS = {"pass": "✓", "fail": "✕", "inconclusive": "?"}
VERDICTS = {"pass": "passed", "fail": "failed", "inconclusive": "inconclusive"}
VERDICT_COLOURS = {
    "light": {"pass": "#00704f", "fail": "#b3261e", "inconclusive": "#7a5900"},
    "dark": {"pass": "#3ecf9f", "fail": "#ff8a80", "inconclusive": "#e6b94c"},
}
NOUNS = {"generate": "text", "classify": "labels", "draw": "pictures"}

NEAR = 1.25
"""Ends of an interval up to this factor apart, with 1 in between, are about the same speed; wider ones say nothing."""

CSS = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.6 FONT}
main{max-width:768px;margin:0 auto;padding:64px 24px 96px}
article+article{margin-top:96px;padding-top:64px;border-top:1px solid var(--faint)}
.over{margin:0;color:var(--soft);font-size:14px}
h1,h2.title{margin:4px 0 12px;font-size:34px;line-height:1.2;font-weight:650;letter-spacing:-.015em;text-wrap:balance}
h1 b,h2.title b{font-weight:inherit;color:var(--dynamic);white-space:nowrap}
.lead{margin:0 0 8px;font-size:17px;color:var(--soft);max-width:62ch}
h2,h3{margin:56px 0 6px;font-size:19px;line-height:1.3;font-weight:650;letter-spacing:-.005em}
p{margin:0 0 12px;max-width:68ch}
.note{color:var(--soft);font-size:14px}
.verdict{display:inline-block;margin-top:10px;font-weight:600}
.verdict i{display:inline-block;width:1.5em;font-style:normal}
.pass{color:var(--pass)}.fail{color:var(--fail)}.inconclusive{color:var(--inconclusive)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(160px,1fr));margin:36px 0 0;border-top:1px solid var(--faint)}
.tiles div{display:flex;flex-direction:column;padding:18px 20px 4px 0}
.tiles dt{order:1;color:var(--soft);font-size:14px;line-height:1.4}
.tiles dd{margin:0}
.tiles .big{font-size:30px;line-height:1.25;font-weight:650;letter-spacing:-.015em;font-variant-numeric:tabular-nums}
.tiles .small{color:var(--soft);font-size:14px;font-variant-numeric:tabular-nums}
figure{margin:18px 0 0}
figure svg{display:block;width:100%;height:auto;overflow:visible}
.gates{list-style:none;margin:12px 0 0;padding:0}
.gates li{display:grid;grid-template-columns:1.8em 1fr;padding:10px 0;border-top:1px solid var(--faint)}
.gates span{color:var(--soft);font-size:14px;display:block}
ul.notes{margin:8px 0 0;padding-left:1.1em}
ul.notes li{margin:4px 0;max-width:70ch}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;margin-top:12px;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:6px 0 6px 18px;text-align:right;white-space:nowrap;border-top:1px solid var(--faint)}
th:first-child,td:first-child{text-align:left;padding-left:0}
thead th{border-top:0;color:var(--soft);font-weight:500}
tbody th{font-weight:400}
tr.dynamic th,tr.dynamic td{font-weight:650}
dl.where{display:grid;grid-template-columns:max-content 1fr;gap:2px 24px;margin:12px 0 0;font-size:14px}
dl.where dt{color:var(--soft)}
dl.where dd{margin:0;overflow-wrap:anywhere}
nav{margin-bottom:80px}
nav ul{list-style:none;margin:24px 0 0;padding:0}
nav li{padding:10px 0;border-top:1px solid var(--faint)}
a{color:inherit;text-decoration-color:var(--soft);text-underline-offset:3px}
footer{margin-top:72px;color:var(--soft);font-size:13px}
@media (max-width:560px){
main{padding:36px 18px 64px}h1,h2.title{font-size:27px}
dl.where{grid-template-columns:1fr}dl.where dd{margin-bottom:8px}
figure{overflow-x:auto}figure svg{min-width:560px}}
@media print{main{padding:0;max-width:none}section{break-inside:avoid}}
"""


def page(results: Sequence[BenchResult]) -> str:
    """The whole document, for one result or several."""
    names = ", ".join(str(r.header.get("model", r.task)) for r in results)
    body = "".join(_article(result, i, alone=len(results) == 1) for i, result in enumerate(results))
    if len(results) > 1:
        body = _contents(results) + body
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>dynx bench: {escape(names)}</title>\n<style>{_css()}</style>\n</head>\n"
        f"<body>\n<main>\n{body}{_footer(results)}</main>\n</body>\n</html>\n"
    )


def _css() -> str:
    def properties(colours: Mapping[Any, str]) -> str:
        return ";".join(f"--{name}:{colour}" for name, colour in colours.items())

    light = f"{properties(LIGHT)};{properties(VERDICT_COLOURS['light'])}"
    dark = f"{properties(DARK)};{properties(VERDICT_COLOURS['dark'])}"
    schemes = (
        f":root{{color-scheme:light dark;{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}"
    )
    return schemes + CSS.replace("FONT", FONT) + styles()


def _contents(results: Sequence[BenchResult]) -> str:
    verdict = overall(gate for result in results for gate in result.gates)
    items = []
    for i, result in enumerate(results):
        said = _badge(result.verdict) if result.verdict else ""
        items.append(f'<li><a href="#r{i}">{escape(_name(result))}</a>: {_headline(result)} {said}</li>')
    return (
        f'<header><p class="over">dynx bench</p><h1>{len(results)} models, plain against static against dynamic</h1>'
        f'{_badge(verdict) if verdict else ""}</header><nav aria-label="Models"><ul>{"".join(items)}</ul></nav>'
    )


def _article(result: BenchResult, number: int, *, alone: bool) -> str:
    level = "1" if alone else "2"
    kind = "" if alone else ' class="title"'
    parts = [
        f'<article id="r{number}"><header><p class="over">dynx bench · {escape(_name(result))}</p>'
        f"<h{level}{kind}>{_headline(result)}</h{level}>{_lead(result)}"
        f"{_badge(result.verdict) if result.verdict else ''}</header>",
        _tiles(result),
        _figure(f"r{number}a", "How fast", charts.intervals(result), _about_speed(result)),
    ]
    drawn = charts.quality(result)
    if drawn is not None:
        measure = figures.QUALITIES[result.task]
        about = (
            f"Up and to the right is better. On the dashed line no other arm is both faster and as good ({measure})."
        )
        parts.append(_figure(f"r{number}b", "Speed and quality", drawn, about))
    if result.task in charts.TASK_CHARTS:
        title, draw = charts.TASK_CHARTS[result.task]
        parts.append(_figure(f"r{number}c", title, draw(result), _about_task(result)))
    parts += [_gates(result), _table(result), _reading(result), _where(result), "</article>\n"]
    return "\n".join(part for part in parts if part)


def _name(result: BenchResult) -> str:
    model = str(result.header.get("model", ""))
    return f"{model} · {result.task}" if model else result.task


def _leading(result: BenchResult) -> ArmResult | None:
    contenders = [a for a in result.arms if a.ratio is not None and not a.reference]
    return next((a for a in contenders if a.group == "dynamic"), None)


def _headline(result: BenchResult) -> str:
    arm, plain = _leading(result), escape(result.reference.name)
    if arm is None or arm.ratio is None:
        return "No speed of dynamic was measured"
    what = NOUNS.get(result.task, result.unit)
    if not arm.ratio.bounded or arm.ratio.low <= 1 <= arm.ratio.high:
        near = arm.ratio.bounded and arm.ratio.high / arm.ratio.low <= NEAR
        said = f"<b>about as fast</b> as {plain}" if near else f"<b>too noisy</b> to be told from {plain} by speed"
        return f"Dynamic {what}, {said}"
    return f"Dynamic {what}, <b>{arm.ratio.ratio:.2f}×</b> as fast as {plain}"


def _lead(result: BenchResult) -> str:
    arm = _leading(result)
    if arm is None:
        return ""
    said = [
        f"{item.ratio.ratio:.2f}× of {item.basis}, {item.baseline} {item.ratio.interval}".rstrip()
        for item in result.comparisons
        if item.arm == arm.name
    ]
    found = figures.quality_of(result, arm)
    if found is not None and result.task == "generate":
        said.append("every answer is plain's" if found.value >= 1 else f"{found} of answers are plain's")
    elif found is not None and result.task == "classify":
        said.append(f"{found} of labels are the full model's")
    elif found is not None:
        said.append(f"{found} {figures.QUALITIES.get(result.task, '')}".rstrip())
    text = "; ".join(said)
    return f'<p class="lead">{escape(text[:1].upper() + text[1:])}.</p>' if text else ""


def _badge(verdict: str) -> str:
    return f'<span class="verdict {verdict}"><i aria-hidden="true">{MARKS[verdict]}</i>Gates {VERDICTS[verdict]}</span>'


def _tiles(result: BenchResult) -> str:
    arm = _leading(result)
    if arm is None or arm.ratio is None:
        return ""
    tiles = [
        (f"times {result.reference.name}", f"{arm.ratio.ratio:.2f}×", arm.ratio.interval if arm.ratio.bounded else "")
    ]
    for item in result.comparisons[:1]:
        if item.arm == arm.name:
            bounded = item.ratio.interval if item.ratio.bounded else ""
            tiles.append((f"times {item.basis} ({item.baseline})", f"{item.ratio.ratio:.2f}×", bounded))
    found = figures.quality_of(result, arm)
    if found is not None:
        within = "" if found.low is None or found.high is None else f"[{100 * found.low:.2f}, {100 * found.high:.2f}]"
        tiles.append((figures.QUALITIES.get(result.task, "equal outputs"), str(found), within))
    if arm.speed is not None:
        tiles.append((f"{result.unit} a second", table.three_digits(arm.speed), ""))
    cells = "".join(
        f'<div><dt>{escape(label)}</dt><dd class="big">{escape(big)}</dd><dd class="small">{escape(small) or "&nbsp;"}</dd></div>'
        for label, big, small in tiles
    )
    return f'<dl class="tiles">{cells}</dl>'


def _figure(name: str, title: str, scene: Scene | None, about: str) -> str:
    if scene is None:
        return ""
    caption = f"<p class='note'>{escape(about)}</p>" if about else ""
    return f"<section><h2>{escape(title)}</h2>{caption}<figure>{to_svg(scene, name=name)}</figure></section>"


def _about_speed(result: BenchResult) -> str:
    return (
        f"Speed over {result.reference.name}'s speed, arms taken in turns in one run. "
        "Filled: dynamic; hollow: static settings, the same for all inputs"
        + ("; diamonds: other software." if any(a.group == "external" for a in result.arms) else ".")
    )


def _about_task(result: BenchResult) -> str:
    if result.task == "generate":
        return "How often the model keeps a draft at each position. Where guesses hold, dynamic drafts further."
    if result.task == "classify":
        return "Dynamic's answers by how far into the model each input went."
    return "Dynamic's pictures by how many steps each was given."


def _gates(result: BenchResult) -> str:
    if not result.gates:
        return ""
    rows = []
    for g in result.gates:
        said = f'<b class="{g.verdict}">{VERDICTS[g.verdict]}</b>{" (advisory)" if g.advisory else ""}'
        mark = f'<b class="{g.verdict}" aria-hidden="true">{MARKS[g.verdict]}</b>'
        rows.append(f"<li>{mark}<div>{escape(g.name)}: {said}<span>{escape(g.reason)}</span></div></li>")
    return f'<section><h2>Gates</h2><ul class="gates">{"".join(rows)}</ul></section>'


def _table(result: BenchResult) -> str:
    quality = {a.name: figures.quality_of(result, a) for a in result.arms}
    measure = figures.QUALITIES.get(result.task, "identical")
    titles = ["arm", f"{result.unit}/s", f"times {result.reference.name}", "interval", *result.columns]
    titles += ["" if result.task == "draw" else measure, "outliers"]
    shown = [i for i, title in enumerate(titles) if title]
    head = "".join(f'<th scope="col">{escape(titles[i])}</th>' for i in shown)
    rows = []
    for arm in result.arms:
        cells = table.cells_of(arm, result.columns)
        found = quality[arm.name]
        values = [arm.name, cells["speed"], cells["ratio"], cells["interval"], *(cells[t] for t in result.columns)]
        values += [str(found) if found else table.NOTHING, str(len(arm.outliers)) if arm.samples else table.NOTHING]
        row = f'<th scope="row">{escape(values[0])}</th>' + "".join(f"<td>{escape(values[i])}</td>" for i in shown[1:])
        rows.append(f'<tr class="{arm.group}">{row}</tr>')
    return (
        f'<section><h2>Every arm</h2><div class="scroll" tabindex="0" role="region" aria-label="Figures of every arm">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _reading(result: BenchResult) -> str:
    gates = {f"{gate.name}: {gate.verdict}, {gate.reason}" for gate in result.gates}
    said = [sentence for sentence in result.reading() if sentence not in gates]
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in said)
    return f'<section><h2>In words</h2><ul class="notes">{items}</ul></section>'


def _where(result: BenchResult) -> str:
    known = {name: value for name, value in result.header.items() if value is not None}
    facts = [(name.replace("_", " "), table.in_words(value)) for name, value in known.items()]
    rounds, cases = table.count(result.rounds, "round"), table.count(result.cases, result.case)
    facts.append(("measured", f"{rounds} of {cases} in {result.elapsed:.1f} s"))
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<section><h2>Measured on</h2><dl class="where">{rows}</dl></section>'


def _footer(results: Sequence[BenchResult]) -> str:
    versions = results[0].header.get("versions") if results else None
    mine = versions.get("dynx") if isinstance(versions, Mapping) else None
    return f"<footer>dynx {escape(str(mine))}</footer>\n" if mine else ""
