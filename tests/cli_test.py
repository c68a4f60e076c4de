"""Runs the pagegrad program and compares what it writes with attention in NumPy and float64.

Usage: python3 cli_test.py <program>
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

PROGRAM = ""
HEADS, KV_HEADS, HEAD_DIM, BLOCK_SIZE = 4, 2, 32, 8


def visible(mask, queries, keys):
    """Which keys each query sees, [queries, keys]."""
    offset = {"none": keys, "causal": keys - queries, "causal-top-left": 0}[mask]
    return np.arange(keys)[None, :] <= np.arange(queries)[:, None] + offset


def alibi_distance(mask, queries, keys):
    """How far each key is from the diagonal of each query, [queries, keys]."""
    offset = 0 if mask == "causal-top-left" else keys - queries
    return np.abs(np.arange(queries)[:, None] + offset - np.arange(keys)[None, :])


def attention(q, k, v, dout, mask, scale=None, softcap=0.0, slopes=None, sinks=None):
    """Results of one sequence, [rows, heads, D], by name."""
    q, k, v, dout = (x.astype(np.float64) for x in (q, k, v, dout))
    scale = 1 / np.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    wide_k, wide_v = (np.repeat(x, group, axis=1) for x in (k, v))
    scores = scale * np.einsum("ihd,jhd->hij", q, wide_k)
    bend = np.ones_like(scores)
    if softcap > 0:
        bend = 1 - np.tanh(scores / softcap) ** 2
        scores = softcap * np.tanh(scores / softcap)
    distance = alibi_distance(mask, len(q), len(k))
    if slopes is not None:
        scores -= slopes[:, None, None] * distance
    scores[:, ~visible(mask, len(q), len(k))] = -np.inf
    sink_terms = np.zeros((q.shape[1], 1)) if sinks is None else np.exp(sinks)[:, None]
    with np.errstate(divide="ignore"):
        # The scores of the tests are small.
        lse = np.log(np.exp(scores).sum(axis=-1) + sink_terms)
    p = np.exp(scores - np.where(np.isinf(lse), 0, lse)[:, :, None])
    out = np.einsum("hij,jhd->ihd", p, wide_v)
    dp = np.einsum("ihd,jhd->hij", dout, wide_v)
    delta = np.einsum("ihd,ihd->hi", dout, out)
    ds_biased = p * (dp - delta[:, :, None])
    ds = ds_biased * bend
    dk = scale * np.einsum("hij,ihd->jhd", ds, q)
    dv = np.einsum("hij,ihd->jhd", p, dout)

    def per_kv_head(x):
        return x.reshape(len(x), -1, group, x.shape[-1]).sum(axis=2)

    return {
        "out": out,
        "lse": lse.T,
        "dq": scale * np.einsum("hij,jhd->ihd", ds, wide_k),
        "dk": per_kv_head(dk),
        "dv": per_kv_head(dv),
        "dalibi_slopes": -(ds_biased * distance).sum(axis=(1, 2)),
        "dsinks": -(np.exp(-np.where(np.isinf(lse), 0, lse)) * sink_terms * delta).sum(axis=1),
    }


def packed_attention(tensors, query_lengths, kv_lengths, mask, scale=None, **options):
    """Results of sequences one after the other."""
    query_ends, kv_ends = np.cumsum(query_lengths)[:-1], np.cumsum(kv_lengths)[:-1]
    split = [
        np.split(tensors[name], query_ends if name in ("q", "dout") else kv_ends)
        for name in ("q", "k", "v", "dout")
    ]
    results = [attention(*sequence, mask, scale, **options) for sequence in zip(*split)]
    joined = {name: np.concatenate([r[name] for r in results]) for name in results[0]}
    for name in ("dalibi_slopes", "dsinks"):
        joined[name] = sum(r[name] for r in results)
    return joined


def starts(lengths):
    return np.concatenate([[0], np.cumsum(lengths)])


class ProgramTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.random = np.random.default_rng(1)

    def normal(self, *shape):
        return self.random.standard_normal(shape).astype(np.float32)

    def packed(self, query_tokens, kv_tokens, value_dim=HEAD_DIM):
        return {
            "q": self.normal(query_tokens, HEADS, HEAD_DIM),
            "dout": self.normal(query_tokens, HEADS, value_dim),
            "k": self.normal(kv_tokens, KV_HEADS, HEAD_DIM),
            "v": self.normal(kv_tokens, KV_HEADS, value_dim),
        }

    def save(self, name, array):
        path = self.folder / f"{name}.npy"
        np.save(path, array)
        return str(path)

    def program(self, *arguments):
        return subprocess.run(
            [PROGRAM, *map(str, arguments)], capture_output=True, text=True, timeout=120
        )

    def run_files(self, op, files, *arguments):
        """The completed `pagegrad run` with arrays as files, by the option's name."""
        options = [f"--op={op}", f"--output={self.folder / 'results'}"]
        for name, array in files.items():
            options.append(f"--{name}={self.save(name, np.asarray(array))}")
        return self.program("run", *options, *arguments)

    def results(self, op, files, *arguments):
        done = self.run_files(op, files, *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, rf"{op}: kernel {op}\w+, \d+ threads, [\d.]+ ms")
        return {path.stem: np.load(path) for path in (self.folder / "results").iterdir()}

    def check(self, results, expected, names, tolerance=2e-5):
        self.assertEqual(set(results), set(names))
        for name in names:
            with self.subTest(name):
                self.assertEqual(results[name].shape, expected[name].shape)
                np.testing.assert_allclose(
                    results[name], expected[name], rtol=tolerance, atol=tolerance
                )


class RunTest(ProgramTest):
    ALL = ("out", "lse", "dq", "dk", "dv")

    def test_packed_with_each_mask(self):
        lengths = [5, 19, 1, 8]
        tensors = self.packed(sum(lengths), sum(lengths))
        files = {**tensors, "cu-seqlens-q": starts(lengths)}
        for mask in ("none", "causal", "causal-top-left"):
            with self.subTest(mask):
                results = self.results("backward", files, f"--mask={mask}", "--block-size=4")
                expected = packed_attention(tensors, lengths, lengths, mask)
                self.check(results, expected, self.ALL)

    def test_options_of_the_scores(self):
        query_lengths, kv_lengths = [3, 20, 6], [11, 7, 6]
        tensors = self.packed(sum(query_lengths), sum(kv_lengths), value_dim=24)
        slopes, sinks = self.normal(HEADS) / 8, self.normal(HEADS)
        lengths = ["--kv-lens=11,7,6", "--softcap=1.5"]
        files = {
            **tensors,
            "cu-seqlens-q": starts(query_lengths),
            "alibi-slopes": slopes,
            "sinks": sinks,
        }
        for mask in ("none", "causal", "causal-top-left"):
            with self.subTest(mask):
                results = self.results("backward", files, f"--mask={mask}", *lengths)
                expected = packed_attention(
                    tensors,
                    query_lengths,
                    kv_lengths,
                    mask,
                    softcap=1.5,
                    slopes=slopes,
                    sinks=sinks,
                )
                names = (*self.ALL, "dalibi_slopes", "dsinks")
                self.check(results, expected, names, tolerance=1e-4)

    def test_window(self):
        tensors = self.packed(9, 9)
        del tensors["dout"]
        options = ("--mask=none", "--window-left=0", "--window-right=0")
        results = self.results("forward", tensors, *options)
        wide_v = np.repeat(tensors["v"], HEADS // KV_HEADS, axis=1)
        np.testing.assert_allclose(results["out"], wide_v, rtol=1e-6)  # each sees its own key

    def test_masks_with_other_kv_lengths(self):
        query_lengths, kv_lengths = [3, 20, 6], [11, 7, 6]
        tensors = self.packed(sum(query_lengths), sum(kv_lengths))
        files = {**tensors, "cu-seqlens-q": starts(query_lengths)}
        for mask in ("none", "causal", "causal-top-left"):
            with self.subTest(mask):
                expected = packed_attention(tensors, query_lengths, kv_lengths, mask)
                results = self.results("backward", files, f"--mask={mask}", "--kv-lens=11,7,6")
                self.check(results, expected, self.ALL)

    def test_kv_lengths_in_files(self):
        query_lengths, kv_lengths = [3, 9], [11, 7]
        tensors = self.packed(sum(query_lengths), sum(kv_lengths))
        expected = packed_attention(tensors, query_lengths, kv_lengths, "causal", scale=0.3)
        files = {**tensors, "cu-seqlens-q": starts(query_lengths)}
        for option, values in (("cu-seqlens-k", starts(kv_lengths)), ("kv-lens", kv_lengths)):
            with self.subTest(option):
                values = np.array(values, np.int32)
                results = self.results("backward", {**files, option: values}, "--scale=0.3")
                self.check(results, expected, self.ALL)

    def test_forward(self):
        tensors = self.packed(12, 12)
        expected = packed_attention(tensors, [12], [12], "causal")
        del tensors["dout"]
        self.check(self.results("forward", tensors), expected, ("out", "lse"))

    def test_saved_output_of_the_forward(self):
        tensors = self.packed(12, 12)
        expected = packed_attention(tensors, [12], [12], "causal")
        saved = {"out": expected["out"].astype(np.float32)}
        for name in ("out", "lse"):
            saved[name] = expected[name].astype(np.float32)
            with self.subTest(given=list(saved)):
                results = self.results("backward", {**tensors, **saved})
                self.check(results, expected, ("dq", "dk", "dv"))

    def test_dense_queries(self):
        batch, length, kv_length = 3, 7, 10
        packed = self.packed(batch * length, batch * kv_length)
        expected = packed_attention(packed, [length] * batch, [kv_length] * batch, "causal")
        tensors = dict(packed)
        for name in ("q", "dout"):
            tensors[name] = packed[name].reshape(batch, length, HEADS, HEAD_DIM)
        for name in ("out", "lse", "dq"):
            expected[name] = expected[name].reshape(batch, length, *expected[name].shape[1:])
        self.check(self.results("backward", tensors), expected, self.ALL)

    def test_shuffled_blocks_with_a_shared_prefix(self):
        lengths = [21, 30]  # the first two blocks are the same
        table = np.array([[6, 1, 3, -1], [6, 1, 5, 0]], np.int32)
        tensors = self.packed(sum(lengths), 7 * BLOCK_SIZE)
        files = {**tensors, "cu-seqlens-q": starts(lengths), "block-table": table}
        for name in ("k", "v"):
            files[name] = tensors[name].reshape(7, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        rows = [
            (blocks[:, None] * BLOCK_SIZE + np.arange(BLOCK_SIZE)).ravel()[:length]
            for blocks, length in zip(table, lengths)
        ]
        gathered = dict(tensors)
        for name in ("k", "v"):
            gathered[name] = tensors[name][np.concatenate(rows)]
        expected = packed_attention(gathered, lengths, lengths, "causal")
        for name in ("dk", "dv"):
            pool = np.zeros((7 * BLOCK_SIZE, KV_HEADS, HEAD_DIM))
            np.add.at(pool, np.concatenate(rows), expected[name])
            expected[name] = pool.reshape(files["k"].shape)
        self.check(self.results("backward", files, "--kv-lens=21,30"), expected, self.ALL)

    def test_float16_files(self):
        tensors = {name: x.astype(np.float16) for name, x in self.packed(12, 12).items()}
        results = self.results("backward", tensors)
        self.check(results, packed_attention(tensors, [12], [12], "causal"), self.ALL, 2e-3)
        types = {name: result.dtype.name for name, result in results.items()}
        self.assertEqual(types["out"], "float16")
        self.assertEqual(types["dq"], "float16")
        for name in ("lse", "dk", "dv"):
            self.assertEqual(types[name], "float32")

    def test_execution_options_do_not_change_the_results(self):
        tensors = self.packed(40, 40)
        first = self.results("backward", tensors)
        for option in ("--threads=1", "--threads=3", "--ordered=off", "--ordered=on"):
            with self.subTest(option):
                second = self.results("backward", tensors, option)
                for name in self.ALL:
                    np.testing.assert_array_equal(first[name], second[name])

    def test_backward_without_out_says_that_the_forward_runs(self):
        tensors = self.packed(4, 4)
        self.assertIn("the forward runs first", self.run_files("backward", tensors).stdout)


class RefusalTest(ProgramTest):
    def refused(self, files, *arguments, status=2, message, op="backward"):
        done = self.run_files(op, files, *arguments)
        self.assertEqual(done.returncode, status, done.stderr)
        self.assertIn(message, done.stderr)

    def test_unknown_option(self):
        self.refused(self.packed(4, 4), "--colour=red", message="--colour=red")

    def test_unknown_mask(self):
        self.refused(self.packed(4, 4), "--mask=diagonal", message="--mask")

    def test_no_command(self):
        self.assertEqual(self.program().returncode, 2)

    def test_missing_option(self):
        done = self.program("run", "--op=forward")
        self.assertEqual(done.returncode, 2)
        self.assertIn("required", done.stderr)

    def test_missing_file(self):
        tensors = self.packed(4, 4)
        del tensors["k"]
        self.refused(tensors, "--k=absent.npy", message="--k: absent.npy")

    def test_missing_dout(self):
        tensors = self.packed(4, 4)
        del tensors["dout"]
        self.refused(tensors, message="--dout: missing")

    def test_dout_with_the_forward(self):
        self.refused(self.packed(4, 4), op="forward", message="--dout: given with --op forward")

    def test_wrong_ranks(self):
        tensors = self.packed(4, 4)
        for name in ("q", "k", "v", "dout"):
            with self.subTest(name):
                files = {**tensors, name: tensors[name][0]}
                self.refused(files, message=f"--{name}: shape is [")

    def test_wrong_type(self):
        files = {**self.packed(4, 4), "k": np.zeros((4, KV_HEADS, HEAD_DIM), np.int32)}
        self.refused(files, message="--k: dtype is int32, expected a float type")

    def test_wrong_lengths(self):
        files = self.packed(4, 4)
        for option, message in (
            ("--kv-lens=5", "--kv-lens: lengths add up to 5, expected 4, the tokens of k"),
            ("--kv-lens=2,2", "--kv-lens: 2 sequences, expected 1, as of q"),
            ("--kv-lens=1,,2", "--kv-lens: value is 1,,2, expected an .npy file, or lengths"),
            ("--kv-lens=-1", "--kv-lens: a length is -1, expected 0 or more"),
            ("--kv-lens=4-1", "--kv-lens: value is 4-1, expected an .npy file, or lengths"),
            ("--kv-lens=99999999999", "--kv-lens: value is 99999999999, expected an .npy file"),
        ):
            with self.subTest(option):
                self.refused(files, option, message=message)

    def test_wrong_starts(self):
        tensors = self.packed(4, 4)
        for values, message in (
            ([1, 4], "[0] is 1, expected a first value of 0"),
            ([0, 3, 2, 4], "[2] is 2 after 3, expected values that do not decrease"),
            ([0, 3], "lengths add up to 3, expected 4, the tokens of q"),
        ):
            with self.subTest(values):
                files = {**tensors, "cu-seqlens-q": values}
                self.refused(files, message=f"--cu-seqlens-q: {message}")

    def paged(self, table):
        files = {**self.packed(4, 4), "block-table": np.array(table, np.int32)}
        for name in ("k", "v"):
            files[name] = self.normal(3, BLOCK_SIZE, KV_HEADS, HEAD_DIM)
        return files

    def test_block_that_the_pool_does_not_have(self):
        self.refused(self.paged([[3]]), "--kv-lens=4", message="block_table")

    def test_table_of_another_batch(self):
        files = self.paged([[0], [1]])
        self.refused(files, "--kv-lens=4", message="--block-table: shape is [2, 1]")

    def test_table_without_lengths(self):
        self.refused(self.paged([[0]]), message="--kv-lens: missing")

    def test_no_such_kernel(self):
        results = self.folder / "results"
        self.refused(self.packed(4, 4), "--kernel=abacus", message="abacus")
        self.assertEqual(list(results.iterdir()), [])

    def test_too_many_threads(self):
        message = "execution.num_threads is 100000, expected 0..4096"
        self.refused(self.packed(4, 4), "--threads=100000", message=message)

    def test_cuda(self):
        self.refused(self.packed(4, 4), "--device=cuda", status=1, message="CUDA")

    def test_output_that_is_a_file(self):
        (self.folder / "results").write_text("")
        self.refused(self.packed(4, 4), message="--output: ")


class BenchTest(ProgramTest):
    TINY = ("--query-len=24", "--kv-len=40", "--head-dim=16", "--block-size=8", "--repetitions=2")
    GEOMETRY = "B1_H8_2_S24x40_D16_blk8_causal"

    def bench(self, *arguments):
        return self.program("bench", *arguments)

    def listed(self, *arguments):
        done = self.bench("--list", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()

    def measured(self, *arguments):
        """Standard output, and the repetitions in the JSON file by the benchmark's name."""
        path = self.folder / "bench.json"
        done = self.bench(*self.TINY, f"--json={path}", *arguments)
        self.assertEqual(done.returncode, 0, done.stderr)
        repetitions = {}
        for run in json.loads(path.read_text())["benchmarks"]:
            if run["run_type"] == "iteration":
                name = run["name"].removesuffix("/real_time")
                repetitions.setdefault(name, []).append(run)
        return done.stdout, repetitions

    def test_names(self):
        for options, geometry in (
            ([], self.GEOMETRY),
            (["--mask=none", "--batch=3"], "B3_H8_2_S24x40_D16_blk8_full"),
            (["--window-left=5", "--heads=2"], "B1_H2_2_S24x40_D16_blk8_causal_w5"),
        ):
            with self.subTest(options):
                names = self.listed(*self.TINY, *options)
                self.assertEqual(names, [f"backward/f32/{geometry}/fused/t1"])

    def test_combinations(self):
        names = self.listed(
            *self.TINY,
            "--op=backward,gather",
            "--dtype=f32,bf16",
            "--schedule=fused,materialised",
            "--threads=1,2",
        )
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual(len(names), 2 * 2 * (2 + 1))
        self.assertIn(f"backward/bf16/{self.GEOMETRY}/materialised/t2", names)
        self.assertIn(f"gather/f32/{self.GEOMETRY}/t1", names)

    def test_suites(self):
        every = self.listed("--suite=all")
        self.assertEqual(len(every), len(set(every)))
        for suite, geometry in (
            ("default", "B1_H8_2_S16384_D128_blk16_full"),
            ("short", "B64_H8_2_S1to300_D128_blk16_causal"),
            ("prefix", "B64_H8_2_S32x4128_D128_blk16_causal_shared4096"),
            ("decode", "B16_H8_2_S1x32768_D128_blk16_causal"),
            ("window", "B1_H8_2_S65536_D64_blk16_causal_w256"),
            ("lengths", "B1_H8_2_S64_D64_blk16_causal"),
            ("peers", "B1_H8_8_S512_D64_blk16_causal"),
        ):
            with self.subTest(suite):
                names = self.listed(f"--suite={suite}")
                self.assertIn(f"backward/f32/{geometry}/fused/t1", names)
                self.assertLess(set(names), set(every))

    def test_filter(self):
        names = self.listed("--filter=_S1024_.*_full/")
        self.assertEqual(
            names, [f"backward/f32/B1_H8_2_S1024_D{d}_blk16_full/fused/t1" for d in (64, 128)]
        )

    def test_measurements(self):
        table, repetitions = self.measured("--op=backward,forward", "--schedule=materialised,fused")
        names = [
            f"backward/f32/{self.GEOMETRY}/materialised/t1",
            f"backward/f32/{self.GEOMETRY}/fused/t1",
            f"forward/f32/{self.GEOMETRY}/t1",
        ]
        self.assertEqual(list(repetitions), names)
        for line, (name, runs) in zip(table.splitlines()[1:], repetitions.items()):
            with self.subTest(name):
                self.assertEqual(len(runs), 2)
                products = 5 if name.startswith("backward") else 2
                pairs = sum(range(17, 41))  # 24 queries, the last one sees 40 keys
                for run in runs:
                    self.assertEqual(run["time_unit"], "ms")
                    self.assertGreater(run["workspace_bytes"], 0)
                    gflop = run["GFLOP/s"] * run["real_time"] * 1e-3
                    self.assertAlmostEqual(gflop / (2e-9 * products * pairs * 8 * 16), 1, places=3)
                best = min(run["real_time"] for run in runs)
                self.assertIn(f"  {best:.3f}  ", line)

    def test_memory_bound(self):
        _, repetitions = self.measured("--op=scatter_add")
        for run in repetitions[f"scatter_add/f32/{self.GEOMETRY}/t1"]:
            moved = run["GB/s"] * run["real_time"] * 1e-3
            self.assertAlmostEqual(moved / (3 * 40 * 2 * 16 * 4e-9), 1, places=3)
            self.assertAlmostEqual(run["of_copy"] * run["peak_GB/s"] / run["GB/s"], 1, places=3)

    def test_kernel_that_the_library_refuses(self):
        done = self.bench(*self.TINY, "--kernel=abacus")
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"backward/f32/{self.GEOMETRY}/abacus/t1\n  skipped: ", done.stdout)
        self.assertIn("abacus", done.stdout.split("skipped: ")[1])

    def test_refusals(self):
        for arguments, message in (
            (["--suite=fast"], "--suite: fast"),
            (["--suite=short", "--heads=4"], "--suite excludes --heads"),
            (["--heads=3"], "--heads: value is 3, expected a multiple of --kv-heads, 2"),
            (["--filter=("], "--filter: value is (, expected a regular expression"),
            (["--filter=abacus"], "--filter: value is abacus, expected part of a name"),
            (["--dtype=f64"], "--dtype: f64"),
            (["--op=backward,sideways"], "--op: sideways"),
            (["--schedule=best"], "--schedule: best"),
            (["--schedule=fused", "--kernel=avx2"], "--schedule excludes --kernel"),
            (["--threads=0"], "--threads"),
            (["--query-len=0"], "--query-len"),
            (["--mask=diagonal"], "--mask: diagonal"),
            (["--window-left=-1"], "--window-left"),
            (["--repetitions=0"], "--repetitions"),
            (["--json=absent/bench.json"], "--json: absent/bench.json cannot be written"),
        ):
            with self.subTest(arguments):
                done = self.bench(*arguments)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertIn(message, done.stderr)


class HelpTest(ProgramTest):
    def test_help(self):
        for command in ([], ["run"], ["info"], ["demo"], ["bench"]):
            with self.subTest(command):
                done = self.program(*command, "--help")
                self.assertEqual(done.returncode, 0)
                self.assertIn("--help", done.stdout)

    def test_help_of_run_has_examples(self):
        self.assertEqual(self.program("run", "--help").stdout.count("pagegrad run --op "), 2)

    def test_info_lists_the_kernels(self):
        done = self.program("info")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"backward_f32_\w+ +backward +f32")


if __name__ == "__main__":
    PROGRAM = sys.argv.pop(1)
    unittest.main()
