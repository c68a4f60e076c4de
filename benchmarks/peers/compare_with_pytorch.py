"""Speed of the paged backward on the CPU: pagegrad and PyTorch, side by side in one run.

For each geometry, type and number of threads: pagegrad, PyTorch as shipped, PyTorch with MKL's
AVX-512 path, pagegrad again. MKL takes that path only on Intel's processors by itself; a preloaded
function makes it take it elsewhere, so that the comparison is with the best that PyTorch's code can
do. Rates count 5 products of 2 D operations a visible pair. A fraction is of the peak that
`pagegrad bench` measures beside its own runs.

Needs a C compiler, and the packages of requirements.txt in an environment of their own:

    python3 -m venv <folder> && <folder>/bin/pip install -r benchmarks/peers/requirements.txt
    <folder>/bin/python benchmarks/peers/compare_with_pytorch.py --json peers.json

Runs on the cores that it is allowed (taskset), from the first on, as many as there are threads.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
PROGRAM = HERE.parents[1] / "build" / "bin" / "pagegrad"
NAME = re.compile(
    r"backward/(?P<dtype>\w+)/(?P<geometry>B(?P<batch>\d+)_H(?P<heads>\d+)_(?P<kv_heads>\d+)"
    r"_S(?P<length>\d+)_D(?P<head_dim>\d+)_blk(?P<block_size>\d+)_causal)/fused/t(?P<threads>\d+)"
)
SIZES = ("batch", "heads", "kv_heads", "length", "head_dim", "block_size")
SHIPPED, AVX512 = "as shipped", "AVX-512 MKL"


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--program", default=str(PROGRAM), help="pagegrad's program")
    parser.add_argument("--suite", default="peers", help="suite of self-attention (peers, lengths)")
    parser.add_argument("--filter", default="", help="regular expression of `pagegrad bench`")
    parser.add_argument("--dtype", default="f32,bf16")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repetitions", type=int, default=9, help="of pagegrad, each time")
    parser.add_argument("--json", help="file for all measurements")
    parser.add_argument("--markdown", help="file for the table, which is printed in any case")
    options = parser.parse_args()
    if not os.access(options.program, os.X_OK):
        parser.error(f"--program: {options.program} is not there, expected pagegrad's program")
    return options


def cores(threads):
    """The first of the allowed cores."""
    allowed = sorted(os.sched_getaffinity(0))
    if threads > len(allowed):
        sys.exit(f"--threads: value is {threads}, expected at most {len(allowed)}, the cores allowed")
    return allowed[:threads]


def pinned(threads):
    """Arguments of subprocess for a process on `threads` cores."""
    chosen = cores(threads)
    return {"preexec_fn": lambda: os.sched_setaffinity(0, chosen), "text": True}


def names(options):
    """Matches of the benchmarks' names."""
    command = [options.program, "bench", "--list", f"--suite={options.suite}"]
    command += [f"--dtype={options.dtype}", f"--threads={options.threads}"]
    command += [f"--filter={options.filter}"] if options.filter else []
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    matches = [(name, NAME.fullmatch(name)) for name in done.stdout.split()]
    for name, match in matches:
        if not match:
            sys.exit(f"--suite: {options.suite} has {name}, expected causal self-attention")
    cores(max(int(match["threads"]) for _, match in matches))  # refuses before anything runs
    return [match for _, match in matches]


def run_pagegrad(options, name):
    """A measurement, and the peak of the machine."""
    threads = int(name["threads"])
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "bench.json"
        done = subprocess.run(
            [options.program, "bench", f"--suite={options.suite}", f"--dtype={name['dtype']}"]
            + [f"--threads={threads}", f"--filter=^{name[0]}$", f"--json={path}"]
            + [f"--repetitions={options.repetitions}"],
            capture_output=True,
            **pinned(threads),
        )
        if done.returncode:
            sys.exit(f"{name[0]}: {done.stdout}{done.stderr}")
        sys.stderr.write("".join(x for x in done.stderr.splitlines(True) if "warning" in x))
        runs = json.loads(path.read_text())["benchmarks"]
    times = {run.get("aggregate_name"): run["real_time"] for run in runs}
    runs = [run for run in runs if run["run_type"] == "iteration"]
    best = min(runs, key=lambda run: run["real_time"])
    return {
        "best_ms": best["real_time"],
        "median_ms": times.get("median", best["real_time"]),
        "gflop": best["GFLOP/s"] * best["real_time"] * 1e-3,
        "peak_gflops": max(run["peak_GFLOP/s"] for run in runs),
        "kernel": best["label"],
    }


def compile_unlock(folder):
    """A library that has MKL take its AVX-512 path on any processor."""
    source, library = pathlib.Path(folder) / "unlock.c", pathlib.Path(folder) / "unlock.so"
    source.write_text("int mkl_serv_intel_cpu_true(void) { return 1; }\n")
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", library], check=True)
    return str(library)


class PyTorch:
    """Processes of PyTorch, one for each way of running it and number of threads."""

    def __init__(self, stack):
        self.stack, self.workers = stack, {}
        self.unlock = compile_unlock(stack.enter_context(tempfile.TemporaryDirectory()))

    def start(self, mode, threads):
        count = str(threads)
        environment = dict(os.environ, OMP_NUM_THREADS=count, MKL_NUM_THREADS=count)
        if mode == AVX512:
            environment["LD_PRELOAD"] = self.unlock
        return self.stack.enter_context(
            subprocess.Popen(
                [sys.executable, HERE / "pytorch_backward.py", count],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                **pinned(threads),
            )
        )

    def run(self, mode, name):
        """Measurements of all variants."""
        key = mode, int(name["threads"])
        if key not in self.workers:
            self.workers[key] = self.start(*key)
        worker = self.workers[key]
        request = {size: int(name[size]) for size in SIZES} | {"dtype": name["dtype"]}
        worker.stdin.write(json.dumps(request) + "\n")
        worker.stdin.flush()
        answer = worker.stdout.readline()
        if not answer:
            sys.exit(f"PyTorch {mode} failed on {name[0]}")
        return [{"mode": mode, **measurement} for measurement in json.loads(answer)]


def compare(options, torch, name):
    first = run_pagegrad(options, name)
    theirs = torch.run(SHIPPED, name) + torch.run(AVX512, name)
    second = run_pagegrad(options, name)
    return {
        "geometry": name["geometry"],
        "dtype": name["dtype"],
        "threads": int(name["threads"]),
        **{size: int(name[size]) for size in SIZES},
        "gflop": first["gflop"],
        "peak_gflops": max(first["peak_gflops"], second["peak_gflops"]),
        "pagegrad": [first, second],
        "pytorch": theirs,
    }


def best(measurements):
    return min(measurements, key=lambda measurement: measurement["best_ms"])


def of_mode(row, mode):
    """The fastest variant."""
    return best([m for m in row["pytorch"] if m["mode"] == mode])


def rates(row, measurement):
    """As in "216 (81 %)": GFLOP/s of the best run and its part of the peak."""
    rate = row["gflop"] / measurement["best_ms"] * 1e3
    return f"{rate:.0f} ({100 * rate / row['peak_gflops']:.0f} %)"


def markdown(rows):
    lines = [
        "GFLOP/s of the best run and part of the peak; PyTorch's best variant; ratio: rate of "
        "pagegrad over PyTorch's.",
        "",
        f"| geometry | dtype | threads | peak | pagegrad | PyTorch {SHIPPED} | variant | ratio "
        f"| PyTorch, {AVX512} | variant | ratio |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours = best(row["pagegrad"])
        cells = [row["geometry"], row["dtype"], row["threads"], f"{row['peak_gflops']:.0f}"]
        cells.append(rates(row, ours))
        for mode in (SHIPPED, AVX512):
            theirs = of_mode(row, mode)
            ratio = theirs["best_ms"] / ours["best_ms"]
            cells += [rates(row, theirs), theirs["variant"].replace("_", " "), f"{ratio:.2f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


def main():
    options = arguments()
    rows = []
    with contextlib.ExitStack() as stack:
        torch = PyTorch(stack)
        for name in names(options):
            print(name[0], file=sys.stderr, flush=True)
            rows.append(compare(options, torch, name))
    result = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "torch": importlib.metadata.version("torch"),
        "rows": rows,
    }
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(result, indent=1) + "\n")
    table = markdown(rows)
    if options.markdown:
        pathlib.Path(options.markdown).write_text(table)
    print(table, end="")


if __name__ == "__main__":
    main()
