"""A bundle's report: one HTML page that needs nothing else, from what `policy.json` says."""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

REPORT = "report.html"
WIDTH, HEIGHT, MARGIN = 640, 300, 56  # of the chart, in pixels

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child, td.text { text-align: left; }
.good { color: #17692f; } .bad { color: #a3201d; font-weight: 600; }
svg text { font: 12px system-ui, sans-serif; fill: #444; }
code { background: #f4f4f4; padding: 0 .3em; }
"""


def page(manifest: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        manifest: `policy.json` of a bundle that was verified.
    """
    verification = manifest["verification"]
    name = f"{manifest['environment']['id']}: {manifest['provenance']['run']}"
    all_gates, failed = len(verification["gates"]), sum(not gate["passed"] for gate in verification["gates"])
    verdict = (
        f"<p class=bad>{failed} of {all_gates} gates do not hold.</p>"
        if failed
        else f"<p class=good>All {all_gates} gates hold.</p>"
    )
    parts = [
        f"<h1>{_text(name)}</h1>",
        verdict,
        f"<p>{verification['episodes']} episodes for each, on the same seeds. Random actions: "
        f"{verification['random_return']:.1f} (interquartile mean); a file may lose {verification['margin']:.3g}. The "
        f"file that is opened by default: <code>{_text(manifest['variants'][manifest['default']])}</code>.</p>",
        _rows(verification["rows"]),
        *_search(manifest),
        *_reductions(manifest.get("compression", {})),
        "<h2>What was folded</h2>",
        _list(manifest["network"]["folds"]),
        "<h2>Gates</h2>",
        _gates(verification["gates"]),
        *([_list(verification["unchecked"])] if verification["unchecked"] else []),
        "<h2>Where this comes from</h2>",
        _provenance(manifest),
    ]
    return (
        f"<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>{_text(name)}</title>\n"
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</html>\n"
    )


def _rows(rows: Sequence[Mapping[str, Any]]) -> str:
    head = ["", "IQM [95 %]", "mean return", "bytes", "gzip", "µs/decision", "agreement", "where clear"]
    body = []
    for row in rows:
        interval = row["interquartile_mean"]
        seen = row["visited"]
        body.append(
            [
                row["name"],
                f"{interval['estimate']:.1f} [{interval['low']:.1f}, {interval['high']:.1f}]",
                f"{row['mean']['estimate']:.1f}",
                f"{row['bytes']:,}",
                f"{row['gzip_bytes']:,}",
                f"{row['microseconds']:.1f}",
                "" if seen is None else f"{seen['overall']:.2%}",
                "" if seen is None or seen["clear"] is None else f"{seen['clear']:.2%}",
            ]
        )
    return _table(head, body)


def _search(manifest: Mapping[str, Any]) -> list[str]:
    report = manifest.get("compression", {})
    candidates = report.get("candidates", [])
    if not candidates:
        return []
    head = ["student", "bytes", "weights", "rounds", "IQM", "agreement", "on its own states", "as good", "on the front"]
    body = [
        [
            each["architecture"],
            "-" if each["bytes"] is None else f"{each['bytes']:,}",
            f"{each['parameters']:,}",
            str(each["rounds"]),
            f"{each['interquartile_mean']:.1f}",
            f"{each['agreement']:.1%}",
            f"{each['own_agreement']:.1%}",
            "yes" if each["passed"] else "no",
            "yes" if each["on_front"] else "",
        ]
        for each in sorted(candidates, key=lambda each: -int(each["parameters"]))
    ]
    return [
        "<h2>Smaller networks that were tried</h2>",
        f"<p>The teacher has {report['teacher_parameters']:,} weights and an interquartile mean of "
        f"{report['teacher_interquartile_mean']:.1f} in the episodes by which students are chosen; "
        f"{report['labelled_states']:,} states were labelled. The bytes are those of a student's smaller file, as it "
        "is first converted; the line is the Pareto front: for no student on it is there a smaller one that earns as "
        "much.</p>",
        _chart(candidates, report.get("architecture"), report["teacher_interquartile_mean"]),
        _table(head, body),
    ]


def _chart(candidates: Sequence[Mapping[str, Any]], chosen: str | None, teacher: float) -> str:
    """Interquartile mean over bytes, on a logarithmic axis, with the Pareto front as a line."""
    candidates = [each for each in candidates if each["bytes"] is not None]
    if not candidates:
        return ""
    sizes = [math.log10(each["bytes"]) for each in candidates]
    values = [float(each["interquartile_mean"]) for each in candidates] + [teacher]
    left, right = min(sizes), max(sizes)
    low, high = min(values), max(values)
    spread = (high - low) or max(abs(high), 1.0)
    low, high = low - 0.08 * spread, high + 0.08 * spread

    def x(size: float) -> float:
        return MARGIN + (size - left) / ((right - left) or 1.0) * (WIDTH - 2 * MARGIN)

    def y(value: float) -> float:
        return HEIGHT - MARGIN - (value - low) / (high - low) * (HEIGHT - 2 * MARGIN)

    marks = [
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{y(teacher):.1f}" y2="{y(teacher):.1f}" stroke="#888" '
        'stroke-dasharray="4 4"/>',
        f'<text x="{WIDTH - MARGIN}" y="{y(teacher) - 6:.1f}" text-anchor="end">teacher</text>',
        f'<line x1="{MARGIN}" x2="{WIDTH - MARGIN}" y1="{HEIGHT - MARGIN}" y2="{HEIGHT - MARGIN}" stroke="#444"/>',
        f'<text x="{WIDTH / 2}" y="{HEIGHT - 14}" text-anchor="middle">bytes (logarithmic)</text>',
        f'<text x="8" y="{MARGIN - 16}">interquartile mean of the returns</text>',
    ]
    front = sorted(
        (x(size), y(float(each["interquartile_mean"])))
        for each, size in zip(candidates, sizes, strict=True)
        if each["on_front"]
    )
    points = " ".join(f"{across:.1f},{up:.1f}" for across, up in front)
    marks.append(f'<polyline points="{points}" fill="none" stroke="#17692f" stroke-opacity=".4"/>')
    for each, size in zip(candidates, sizes, strict=True):
        at, colour = y(float(each["interquartile_mean"])), "#17692f" if each["passed"] else "#a3201d"
        own, name = each["architecture"] == chosen, _text(each["architecture"])
        marks.append(
            f'<circle cx="{x(size):.1f}" cy="{at:.1f}" r="{7 if own else 4}" fill="{colour}">'
            f"<title>{name}: {each['bytes']:,} bytes, {each['parameters']:,} weights</title></circle>"
        )
        marks.append(f'<text x="{x(size):.1f}" y="{at + 20:.1f}" text-anchor="middle">{name}</text>')
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img">{"".join(marks)}</svg>'


def _reductions(report: Mapping[str, Any]) -> list[str]:
    sentences = []
    if "pruning" in report:
        layers = ", ".join(f"{name} {share:.0%}" for name, share in report["pruning"]["layers"].items())
        sentences.append(f"{report['pruning']['sparsity']:.0%} of the weights were made zero ({layers}).")
    if "clustering" in report:
        values = ", ".join(f"{name} {count}" for name, count in report["clustering"]["values"].items())
        sentences.append(f"The weights of a layer have few values ({values}).")
    if not sentences:
        return []
    return ["<h2>Pruning and clustering</h2>", _list(sentences)]


def _gates(gates: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for gate in gates:
        mark = "<td class=good>holds" if gate["passed"] else "<td class=bad>fails"
        name, file, found = (_text(gate[part]) for part in ("name", "file", "sentence"))
        lines.append(f"<tr><td>{name}<td class=text>{file}{mark}<td class=text>{found}")
    return f"<table><tr><th>gate<th class=text>file<th>verdict<th class=text>found{''.join(lines)}</table>"


def _provenance(manifest: Mapping[str, Any]) -> str:
    origin, verification = manifest["provenance"], manifest["verification"]
    facts = {
        "run": origin["run"],
        "seed": origin["seed"],
        "policy": origin["policy"],
        "env steps": origin["steps"],
        "rlplatform": origin["rlplatform"],
        **verification["machine"],
    }
    lines = "".join(f"<tr><td>{_text(key)}<td class=text>{_text(value)}" for key, value in facts.items())
    return f"<table>{lines}</table>"


def _table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    top = "".join(f"<th>{_text(cell)}" for cell in head)
    lines = "".join("<tr>" + "".join(f"<td>{_text(cell)}" for cell in line) for line in body)
    return f"<table><tr>{top}{lines}</table>"


def _list(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(sentence)}" for sentence in sentences) + "</ul>"


def _text(value: Any) -> str:
    return html.escape(str(value))
