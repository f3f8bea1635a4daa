"""Draws what the dashboards' panels showed: draw.py PANELS.json FOLDER

One picture a dashboard, of its panels with lines, out of what `cargo xtask test observability` asked of
Prometheus. Grafana draws the same queries; this is for those who look at docs/observability.md.
"""

import json
import math
import re
import sys
from collections import OrderedDict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from PIL import Image
from matplotlib.ticker import FuncFormatter, MaxNLocator

COLUMNS = 3
# Series that one panel names in its legend.
NAMED_MAX = 6
COLORS = ["#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#b5a100", "#5794f2", "#ff9830", "#73bf69", "#a16a94"]


def scaled(value, steps, base):
    for name in steps:
        if abs(value) < base or name == steps[-1]:
            return f"{value:.3g} {name}".strip()
        value /= base


def shown(unit):
    """How a number of this unit is written."""

    def text(value, _=None):
        if unit == "s":
            if value == 0 or abs(value) >= 1:
                return f"{value:.3g} s"
            return f"{value * 1e3:.3g} ms" if abs(value) >= 1e-3 else f"{value * 1e6:.3g} µs"
        if unit in ("bytes", "Bps"):
            return scaled(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024) + ("/s" if unit == "Bps" else "")
        if unit == "percentunit":
            return f"{value * 100:.4g} %"
        if unit == "percent":
            return f"{value:.3g} %"
        if unit in ("reqps", "cps"):
            return f"{value:.3g}/s"
        return scaled(value, ["", "k", "M", "G"], 1000)

    return text


def legend(form, labels):
    text = form or ""
    for key, value in labels.items():
        text = text.replace("{{%s}}" % key, value)
    return re.sub(r"{{\w+}}", "none", text).replace("godwit.", "")


def lines(panels):
    """Panels of a board by id, each with its series: legend, times and values."""
    found = OrderedDict()
    for target in panels:
        panel = found.setdefault(target["id"], {**target, "lines": []})
        for series in target["series"]:
            points = [(t, float(v)) for t, v in series["values"] if math.isfinite(float(v))]
            if points:
                panel["lines"].append((legend(target["legend"], series["metric"]), points))
    return found.values()


def draw(axes, panel, began):
    axes.set_title(panel["panel"], fontsize=9, loc="left", fontweight="bold")
    # What moves most is named first.
    panel["lines"].sort(key=lambda line: -max(abs(v) for _, v in line[1]))
    for number, (name, points) in enumerate(panel["lines"]):
        xs, ys = [], []
        for t, v in points:
            # A hole in the data is one in the line.
            if xs and t - began - xs[-1] > 2.5:
                xs.append(xs[-1])
                ys.append(math.nan)
            xs.append(t - began)
            ys.append(v)
        axes.plot(
            xs,
            ys,
            color=COLORS[number % len(COLORS)],
            linewidth=1.2,
            marker="." if len(points) < 4 else None,
            label=name if name and number < NAMED_MAX else None,
        )
    axes.yaxis.set_major_formatter(FuncFormatter(shown(panel["unit"])))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f} s"))
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7, length=2)
    axes.set_xlim(left=0)
    top = max((v for _, points in panel["lines"] for _, v in points), default=0)
    axes.set_ylim(bottom=0, top=top * 1.1 if top > 0 else 1)
    axes.grid(color="#dddddd", linewidth=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    names = [name for name, _ in panel["lines"] if name]
    if names:
        more = len(names) - NAMED_MAX
        handles, labels = axes.get_legend_handles_labels()
        title = f"and {more} more" if more > 0 else None
        short = [text if len(text) <= 38 else "…" + text[-37:] for text in labels]
        axes.legend(
            handles, short, fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.14), ncol=2 if max(map(len, short)) < 22 else 1,
            frameon=False, title=title, title_fontsize=6, borderaxespad=0, handlelength=1.2, columnspacing=1,
        )


def board(name, targets, folder):
    stats = [p for p in lines(t for t in targets if t["kind"] == "stat") if p["lines"]]
    panels = [p for p in lines(t for t in targets if t["kind"] == "timeseries")]
    began = min(t for p in panels for _, points in p["lines"] for t, _ in points)
    rows = math.ceil(len(panels) / COLUMNS)
    figure, all_axes = plt.subplots(rows, COLUMNS, figsize=(12, 2.75 * rows + 0.7), squeeze=False)
    for axes, panel in zip(all_axes.flat, panels):
        draw(axes, panel, began)
    for axes in list(all_axes.flat)[len(panels):]:
        axes.axis("off")
    head = "    ".join(f"{p['panel']}: {shown(p['unit'])(p['lines'][0][1][-1][1])}" for p in stats)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / figure.get_figheight()), h_pad=1.2, w_pad=1.5)
    figure.text(0.01, 1 - 0.08 / figure.get_figheight(), head, fontsize=9, va="top")
    path = folder / f"{Path(name).stem}.png"
    figure.savefig(path, dpi=72)
    # Few colours are enough for lines.
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)
    plt.close(figure)
    print(path, path.stat().st_size, "bytes")


def main():
    source, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    boards = OrderedDict()
    for target in json.loads(source.read_text()):
        boards.setdefault(target["board"], []).append(target)
    for name, targets in boards.items():
        board(name, targets, folder)


main()
