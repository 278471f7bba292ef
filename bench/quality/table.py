"""Records of quality as a Markdown table."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from posecrafter.bench.quality.measure import settings_of


def table(records: list[dict[str, Any]]) -> str:
    """A Markdown table: one row a subject, variant and what it was made with; means over seeds, whose last lines count.

    Old lines, which do not tell their options, are told apart by their tuning steps. Lines of the same options stay
    together: where a time limit cut their steps, each seed has made as many as fitted.
    """
    head = "| subject | variant | tuning steps | thin | options | seeds |"
    head += " PSNR dB | SSIM | detail | pose error % | nearest copy | published |"
    rows = [head, "|" + "---|" * head.count(" | ") + "---|"]
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        steps = None if "tuning" in record else record.get("tuning_steps")
        row = [record["subject"], record["variant"], steps, settings_of(record)]
        groups.setdefault(json.dumps(row, sort_keys=True), {})[record["seed"]] = record
    for seeds in groups.values():
        group = list(seeds.values())
        cells = [group[0]["subject"], group[0]["variant"], _steps(group), str(group[0].get("thin", 1))]
        cells += [_options(group[0]), str(len(group))]
        cells += [_mean(group, "psnr", 2), _mean(group, "ssim", 4), _mean(group, "detail", 2)]
        cells += [_mean(group, "pose_error_percent", 2), _pair(group[0], "nearest_copy"), _pair(group[0], "published")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _steps(group: list[dict[str, Any]]) -> str:
    """Tuning steps that were made, from the fewest to the most."""
    steps = sorted({r["tuning_steps"] for r in group if "tuning_steps" in r})
    return " .. ".join(str(count) for count in dict.fromkeys(steps[:1] + steps[-1:]))


def _options(record: dict[str, Any]) -> str:
    """The base, and what was given on top of its defaults; nothing where an old line does not tell."""
    if "base" not in record:
        return ""
    given = [json.dumps(record[name], sort_keys=True) for name in ("tuning", "request") if record[name]]
    return " ".join([f"{record['base']} {record['base_digest']}", *given])


def _mean(group: list[dict[str, Any]], field: str, digits: int) -> str:
    values = [r[field] for r in group if r.get(field) is not None]
    if not values:
        return ""
    spread = f" ± {np.std(values):.{digits}f}" if len(values) > 1 else ""
    return f"{np.mean(values):.{digits}f}{spread}"


def _pair(record: dict[str, Any], field: str) -> str:
    if field not in record:
        return ""
    return f"{record[field]['psnr']:.2f} / {record[field]['ssim']:.3f}"
