"""Draws the part of the peak that pagegrad and PyTorch reach, over the length of the sequences.

    python compare_with_pytorch.py --suite lengths --threads 1 --json lengths.json
    python plot_fraction_of_peak.py lengths.json fraction_of_peak.png

Needs the packages of requirements.txt.
"""

import argparse
import json
import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402

from compare_with_pytorch import AVX512, SHIPPED, best, of_mode  # noqa: E402

CURVES = {
    "pagegrad": lambda row: best(row["pagegrad"]),
    f"PyTorch, {AVX512}": lambda row: of_mode(row, AVX512),
    f"PyTorch {SHIPPED}": lambda row: of_mode(row, SHIPPED),
}


def draw(axes, rows):
    rows = sorted(rows, key=lambda row: row["length"])
    lengths = [row["length"] for row in rows]
    for label, choose in CURVES.items():
        fractions = [
            100 * row["gflop"] / choose(row)["best_ms"] * 1e3 / row["peak_gflops"] for row in rows
        ]
        axes.plot(lengths, fractions, marker="o", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [str(length) for length in lengths], rotation=45)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)


def figure(rows):
    """A panel for each type (down) and head_dim (across)."""
    dtypes = sorted({row["dtype"] for row in rows}, reverse=True)
    head_dims = sorted({row["head_dim"] for row in rows})
    whole, panels = pyplot.subplots(
        len(dtypes),
        len(head_dims),
        squeeze=False,
        sharey=True,
        figsize=(5 * len(head_dims), 4 * len(dtypes)),
        layout="constrained",
    )
    for line, dtype in zip(panels, dtypes):
        for axes, head_dim in zip(line, head_dims):
            draw(axes, [r for r in rows if (r["dtype"], r["head_dim"]) == (dtype, head_dim)])
            axes.set_title(f"{dtype}, D = {head_dim}")
        line[0].set_ylabel("% of the peak")
    for axes in panels[-1]:
        axes.set_xlabel("queries and keys")
    panels[0][0].legend()
    return whole


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("measurements", help="JSON file of compare_with_pytorch.py")
    parser.add_argument("picture", help="PNG file to write")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    rows = json.loads(pathlib.Path(options.measurements).read_text())["rows"]
    rows = [row for row in rows if row["threads"] == options.threads]
    if not rows:
        parser.error(f"--threads: value is {options.threads}, of which the file has no measurement")
    figure(rows).savefig(options.picture, dpi=150)


if __name__ == "__main__":
    main()
