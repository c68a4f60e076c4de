"""The paged backward in PyTorch on one GPU, over the geometries of gpu_benchmark.

PyTorch knows no paging: every peer gathers K and V, a copy of a shared prefix for each sequence, runs
FlashAttention-2 or cuDNN, and adds the results to float32 pools. Prints the median in milliseconds of
whole steps and of the forward alone, TFLOP/s over visible pairs (5 and 2 products of 2 D operations),
and the memory that a backward needs beyond its arguments. Needs PyTorch 2.5 or later with CUDA.

    python pytorch_gpu.py [--head-dims 128,64]
"""

import argparse
import math
import statistics

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

HEADS, KV_HEADS, BLOCK = 32, 8, 16
SELF = [(4, 2048), (2, 4096), (1, 8192)]  # B, S
PREFIXED = [(64, 128, 8192), (64, 512, 2048), (16, 1024, 4096)]  # B, S_q, prefix
BACKENDS = {"FA2": SDPBackend.FLASH_ATTENTION, "cuDNN": SDPBackend.CUDNN_ATTENTION}


def median_ms(step, runs=9):
    """Median time of a step on the GPU."""
    for _ in range(2):
        step()
    times = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in "be")
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


class Job:
    """Tensors in bfloat16 of a batch whose sequences share their first `prefix` keys."""

    def __init__(self, batch, queries, prefix, head_dim, causal):
        self.causal = causal and prefix == 0  # the small triangle after a prefix counts as visible
        self.keys, self.head_dim = prefix + queries, head_dim
        shared, own = prefix // BLOCK, queries // BLOCK
        blocks = torch.randperm(shared + batch * own, device="cuda")
        self.table = torch.cat(
            [blocks[:shared].expand(batch, shared), blocks[shared:].view(batch, own)], 1
        ).reshape(-1)
        self.pool_shape = (len(blocks), BLOCK, KV_HEADS, head_dim)
        self.k_pool, self.v_pool = self.normal(*self.pool_shape), self.normal(*self.pool_shape)
        self.q = self.normal(batch, HEADS, queries, head_dim).requires_grad_()
        self.dout = self.normal(batch, HEADS, queries, head_dim)
        pairs = batch * HEADS * queries * self.keys / (2 if self.causal else 1)
        self.product = 2 * pairs * head_dim

    @staticmethod
    def normal(*shape):
        return torch.randn(shape, device="cuda", dtype=torch.bfloat16)

    def gather(self):
        shape = (self.q.shape[0], self.keys, KV_HEADS, self.head_dim)
        return [p[self.table].view(shape).transpose(1, 2) for p in (self.k_pool, self.v_pool)]

    def scatter_add(self, gradient):
        pool = torch.zeros(self.pool_shape, device="cuda")
        rows = gradient.transpose(1, 2).reshape(-1, BLOCK, KV_HEADS, self.head_dim)
        return pool.index_add_(0, self.table, rows.float())

    def forward(self, k, v):
        # FlashAttention-2 takes grouped heads in PyTorch, and so does cuDNN.
        return scaled_dot_product_attention(
            self.q, k, v, is_causal=self.causal, scale=1 / math.sqrt(self.head_dim), enable_gqa=True
        )

    def measure(self, backend):
        """Forward and backward in ms, and GiB that the backward takes."""
        with sdpa_kernel(backend):
            k, v = (x.detach().requires_grad_() for x in self.gather())
            out = self.forward(k, v)

            def backward():
                self.gather()
                dq, dk, dv = torch.autograd.grad(out, (self.q, k, v), self.dout, retain_graph=True)
                return dq, self.scatter_add(dk), self.scatter_add(dv)

            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            backward_ms = median_ms(backward)
            # k and v as gathered before count too: whoever pages has no use for them.
            gathered = k.nbytes + v.nbytes
            extra = torch.cuda.max_memory_allocated() - held + gathered
            with torch.no_grad():
                forward_ms = median_ms(lambda: self.forward(*self.gather()))
        return forward_ms, backward_ms, extra / 2**30


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--head-dims", default="128,64")
    head_dims = [int(d) for d in arguments.parse_args().head_dims.split(",")]
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}")
    print(f"{'':34}{'forward':>16}{'backward':>18}{'extra GiB':>11}")
    for head_dim in head_dims:
        jobs = [(f"B{b}_S{s}_D{head_dim}_{mask}", b, s, 0, mask == "causal")
                for mask in ("causal", "full") for b, s in SELF]
        jobs.append((f"B64_S128_D{head_dim}_causal", 64, 128, 0, True))
        jobs += [(f"B{b}_Sq{s}_prefix{p}_D{head_dim}", b, s, p, True) for b, s, p in PREFIXED]
        for name, batch, queries, prefix, causal in jobs:
            job = Job(batch, queries, prefix, head_dim, causal)
            for peer, backend in BACKENDS.items():
                try:
                    forward, backward, extra = job.measure(backend)
                except RuntimeError as error:
                    print(f"{name:28}{peer:6} {str(error).splitlines()[0][:80]}")
                    continue
                rates = [n * job.product / ms * 1e-9 for n, ms in ((2, forward), (5, backward))]
                print(f"{name:28}{peer:6}{forward:8.3f}{rates[0]:8.1f}{backward:10.3f}"
                      f"{rates[1]:8.1f}{extra:11.2f}", flush=True)
            del job
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
