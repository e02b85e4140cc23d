# SPDX-License-Identifier: GPL-2.0
"""The chart of a result: how many times the kernel's instructions each operation takes."""

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from result import NAMES, NOTE

LESS, MORE = "#1b7f79", "#c4552d"
INK, FAINT = "#222222", "#8a8a8a"
TICKS = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8]
# Bars end here; the figure beside a bar is never cut.
LIMITS = TICKS[0], TICKS[-1]


def name_of(tick):
    return f"{tick:g}" if tick >= 1 else f"1/{round(1 / tick)}"


def number(ratio):
    return f"{ratio:.3f}" if ratio < 0.1 else f"{ratio:.2f}"


def panel(axes, rows, title):
    ratios = [row.ratio("rdax", "kernel") for row in rows]
    ends = [min(max(ratio, LIMITS[0]), LIMITS[1]) for ratio in ratios]
    places = range(len(rows))
    axes.barh(places, [end - 1 for end in ends], left=1, height=0.62,
              color=[LESS if ratio <= 1 else MORE for ratio in ratios])
    for place, row, ratio, end in zip(places, rows, ratios, ends, strict=True):
        left = ratio <= 1
        axes.annotate(number(ratio), (end, place), xytext=(-4 if left else 4, 0),
                      textcoords="offset points", va="center", ha="right" if left else "left",
                      fontsize=8, color=INK)
        axes.annotate(f"{row.cost('rdax'):,.0f} / {row.cost('kernel'):,.0f}", (1, place),
                      xycoords=("axes fraction", "data"), xytext=(6, 0),
                      textcoords="offset points", va="center", ha="left", fontsize=7.5,
                      color=FAINT)
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(LIMITS[0] / 1.8, LIMITS[1] * 1.8)
    axes.xaxis.set_major_locator(FixedLocator(TICKS))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda tick, _: name_of(tick)))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=8.5, colors=INK)
    axes.spines[:].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    axes.annotate("rdax / kernel", (1, 1), xycoords="axes fraction", xytext=(6, 5),
                  textcoords="offset points", fontsize=7.5, color=FAINT)


def draw(result, path):
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "rdax",
                                "font.family": "sans-serif"})
    panels = [(fs, result.rows(fs, "rdax", "kernel")) for fs in result.systems()]
    rows = panels[0][1]
    figure, columns = pyplot.subplots(
        1, len(panels), squeeze=False, figsize=(5 + 4.2 * len(panels), 1.6 + 0.225 * len(rows)))
    for axes, (fs, found) in zip(columns[0], panels, strict=True):
        panel(axes, found, NAMES[fs])
        axes.set_yticks(range(len(found)), [row.label for row in found])
        axes.set_ylim(len(found) - 0.4, -0.6)
        if axes is not columns[0][0]:
            axes.tick_params(labelleft=False)
    figure.suptitle("Instructions of rdax as a multiple of the kernel's own DAX code "
                    "(left of 1: fewer)\n", x=0.01, ha="left", fontsize=12, color=INK)
    figure.text(0.01, 0.006, f"{result.title()}. Beside each bar: instructions per operation.\n"
                f"{NOTE}", fontsize=7.5, color=FAINT)
    figure.tight_layout(rect=(0, 0.025, 0.99, 1), w_pad=3)
    figure.savefig(path, metadata={"Date": None})
    # matplotlib names no licence, and every file of the project does.
    text = path.read_text(encoding="utf-8")
    head, mark, rest = text.partition("?>\n")
    path.write_text(f"{head}{mark}<!-- SPDX-License-Identifier: GPL-2.0 -->\n{rest}",
                    encoding="utf-8")
