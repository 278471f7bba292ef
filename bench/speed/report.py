"""Records to Markdown and plots: what stands between two marks in docs/performance.md is made here and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from posecrafter.bench.records import Record, rewrite
from posecrafter.bench.speed.records import latest, of_newest_machine
from posecrafter.files import atomic_write

BEGIN, END = "<!-- made by posecrafter bench -->", "<!-- end -->"
TARGETS = (
    ("ours, fp32, target mode", "pocket 128", "target", "fp32", False, 2.2),
    ("ours, fp32, reference mode, first request", "pocket 128", "reference", "fp32", False, 3.5),
    ("ours, fp32, reference mode, repeated request", "pocket 128", "reference", "fp32", True, 3.8),
    ("ours, bf16, reference mode, first request", "pocket 128", "reference", "bf16", False, 5.0),
)
"""What was aimed at: words, case, mode, precision, repeated, ratio to the published loop."""


def write_report(records: Sequence[Record], page: Path) -> None:
    """Rebuild the tables between the marks of `page`, and the plots beside it, from the newest machine's records: rows
    of two machines have no ratio to each other.

    Raises: RequestError "bench-page" where the page lacks the marks.
    """
    found = list(latest(of_newest_machine(records)).values())
    cases = list(dict.fromkeys(record["case"] for record in found))
    found.sort(key=lambda record: cases.index(record["case"]))
    plots = _plots(found, page.parent)
    images = [f"![{words}]({name})" for name, words in plots.items()]
    body = "\n\n".join([_machine(found), *_tables(found), *(["### Plots", *images] if images else [])])
    rewrite(page, BEGIN, END, body)


def _machine(records: Sequence[Record]) -> str:
    machines: dict[tuple[Any, ...], dict[str, set[str]]] = {}
    for m in (record["machine"] for record in records):
        key = (m["cpu"], m["cores"], m["threads"], " ".join(m["flags"]))
        found = machines.setdefault(key, {"commits": set(), "dates": set()})
        found["commits"].add(m["commit"])
        found["dates"].add(m["date"][:10])
    loads, cores = zip(*((r["machine"]["load"], r["machine"]["cores"]) for r in records), strict=True)
    lines = [
        f"- {cpu}, {cores} cores, {threads} threads ({flags}), commit {', '.join(sorted(found['commits']))}; "
        f"{', '.join(sorted(found['dates']))}."
        for (cpu, cores, threads, flags), found in sorted(machines.items())
    ]
    libraries = records[-1]["machine"]["libraries"]
    lines.append("- " + ", ".join(f"{name} {version}" for name, version in libraries.items()) + ".")
    lines.append(f"- Load of the machine when the cases began: {min(loads):.1f} to {max(loads):.1f}.")
    if max(loads) > max(cores) + 1:
        lines.append(
            "- **The machine was busy.** PyTorch's threads wait for one another, so with more than one thread the "
            "ratios flatter us: record again on an idle machine."
        )
    return "\n".join(lines)


def _tables(records: Sequence[Record]) -> list[str]:
    kinds = {kind: [r for r in records if r["kind"] == kind] for kind in ("render", "memory", "operators", "step")}
    made = ["### Aims", _aims(kinds["render"], kinds["memory"])]
    if kinds["render"]:
        made += ["### Seconds of a request", *_renders(kinds["render"])]
    if kinds["memory"]:
        names = ("case", "peak_mib", "open_seconds", "import_seconds")
        rows = [[record[name] for name in names] for record in kinds["memory"]]
        head = ["process", "peak, MiB", "to open, s", "import posecrafter.runtime, s"]
        made += ["### Memory of a fresh process", _table(head, rows)]
    if kinds["step"]:
        steps = sorted(kinds["step"], key=lambda r: (r["size"], -r["step_seconds"]))
        rows = [
            [r["case"], r["frames"], r["step_gflop"], r["step_seconds"], r["gflop_per_second"], _share(r)]
            for r in steps
        ]
        head = ["one guided step", "frames", "GFLOP", "s", "GFLOP/s", "of peak"]
        made += ["### Stable Diffusion 1.5's size", _table(head, rows)]
    if kinds["operators"]:
        made.append("### Time of a guided step by operator")
    for record in kinds["operators"]:
        rows = [[name, f"{share:.1%}"] for name, share in record["shares"].items()]
        made.append(_table([f"{record['label']}, {record['step_seconds']:.3f} s", "share"], rows))
    return made


def _aims(renders: Sequence[Record], memories: Sequence[Record]) -> str:
    rows = []
    for words, case, mode, precision, repeated, aim in TARGETS:
        same = [r for r in renders if r["case"] == case and not r["runner"].startswith("published")]
        same = [r for r in same if (r["inversion"], r["precision"], r["repeated"]) == (mode, precision, repeated)]
        ran = [r for r in same if "skipped" not in r]
        best = max(ran, key=lambda r: r["ratio"], default=None)
        skipped = next((r["skipped"] for r in same if "skipped" in r), "not measured")
        rows.append([words, f"{aim:g}x", skipped if best is None else f"{best['ratio']:.2f}x ({best['runner']})"])
    peaks = {r["runner"]: r["peak_mib"] for r in memories if not r["case"].startswith("quick")}
    ours = {name: peak for name, peak in peaks.items() if not name.startswith("published")}
    if ours and "published eager" in peaks:
        name = min(ours, key=lambda name: ours[name])
        rows.append(
            ["peak memory of a fresh process", "0.5x", f"{ours[name] / peaks['published eager']:.2f}x ({name})"]
        )
    for runner in ("native", "openvino"):
        grown = {r["case"]: r["seconds"]["p50"] for r in renders if r["runner"] == runner and "skipped" not in r}
        if {"frames 17", "frames 33"} <= grown.keys():
            ratio = grown["frames 33"] / grown["frames 17"]
            rows.append(["time, 33 frames over 17", "2.1x at most", f"{ratio:.2f}x ({runner})"])
    return _table(["against the published loop, eager fp32", "aim", "measured"], rows)


def _renders(records: Sequence[Record]) -> list[str]:
    """A line of words and a table for each case; the published loop first, then by mode, precision and speed."""
    made = []
    for case in dict.fromkeys(record["case"] for record in records):
        mine = sorted((r for r in records if r["case"] == case), key=_place)
        first = mine[0]
        size = f"{first['size']}x{first['size']}"
        made.append(f"**{case}**: {first['frames']} target frames at {size}, {first['steps']} + {first['steps']} steps")
        head = [
            "runner",
            "precision, mode",
            "s, p50",
            "p20 .. p80",
            "speed",
            "evaluations",
            "GFLOP/s",
            "of peak",
            "PSNR",
        ]
        made.append(_table(head, [_render(record) for record in mine]))
    return made


def _place(record: Record) -> tuple[Any, ...]:
    published = record["runner"].startswith("published")
    return (
        not published, record["inversion"] != "target", record["repeated"], record["precision"] != "fp32",
        0 if published else -record["ratio"],
    )  # fmt: skip


def _render(r: Record) -> list[Any]:
    words = f"{r['precision']}, {r['inversion']}{', repeated' if r['repeated'] else ''}"
    if "skipped" in r:
        return [r["runner"], words, f"skipped: {r['skipped']}", *[""] * 6]
    seconds = r["seconds"]
    return [
        r["runner"], words, f"{seconds['p50']:.2f}", f"{seconds['p20']:.2f} .. {seconds['p80']:.2f}",
        f"{r['ratio']:.2f}x", r["frame_evaluations"], r["gflop_per_second"], _share(r), r["psnr"],
    ]  # fmt: skip


def _share(record: Record) -> str:
    return f"{record['share']:.0%}"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _plots(records: Sequence[Record], folder: Path) -> dict[str, str]:
    """Write the plots that the records allow: file name -> words."""
    import matplotlib

    matplotlib.use("agg")
    made: dict[str, str] = {}
    ran = [r for r in records if r["kind"] == "render" and "seconds" in r]
    main = [r for r in ran if r["case"] == "pocket 128"] or [r for r in ran if r["case"] == "quick"]
    if main:
        made["speed-stages.png"] = "Seconds of a request by stage"
        _stages(main, folder / "speed-stages.png")
    memory = [r for r in records if r["kind"] == "memory"]
    if memory:
        made["speed-memory.png"] = "Peak memory of a fresh process"
        _bars(
            [
                (r["label"] if r["case"].startswith("quick") else r["case"].removeprefix("memory, "), r["peak_mib"])
                for r in memory
            ],
            "MiB",
            folder / "speed-memory.png",
        )
    frames = [r for r in ran if r["case"].startswith("frames ")]
    if frames:
        made["speed-frames.png"] = "Seconds by the number of frames"
        _lines(frames, "frames", "frames of a pass", folder / "speed-frames.png", 1)
    sizes = [r for r in ran if r["case"] in ("pocket 256",) or r["case"] == "frames 17"]
    if len({r["size"] for r in sizes}) > 1:
        made["speed-size.png"] = "Seconds of a guided step by size"
        _lines(sizes, "size", "pixels a side", folder / "speed-size.png", 0)
    return made


def _stages(records: Sequence[Record], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.5 * len(records) + 1.5), layout="constrained")
    axes = figure.subplots()
    stages = list(records[0]["stages"])
    left = [0.0] * len(records)
    for stage in stages:
        widths = [r["stages"].get(stage, 0.0) for r in records]
        axes.barh([r["label"] for r in records], widths, left=left, label=stage)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8)
    _save(figure, path)


def _bars(values: Sequence[tuple[str, float]], unit: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 * len(values) + 1), layout="constrained")
    axes = figure.subplots()
    axes.barh([name for name, _ in values], [value for _, value in values])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    _save(figure, path)


def _lines(records: Sequence[Record], what: str, words: str, path: Path, add: int) -> None:
    """Seconds of one sampling step against a size of the case, a line a runner."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for runner in dict.fromkeys(r["runner"] for r in records):
        points = sorted((r[what] + add, r["stages"]["sample"] / r["steps"]) for r in records if r["runner"] == runner)
        axes.plot(*zip(*points, strict=True), marker="o", label=runner)
    axes.set_xlabel(words)
    axes.set_ylabel("seconds of a guided step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110)
