"""The paged backward in PyTorch on the CPU: what compare_with_pytorch.py compares with.

PyTorch knows no paging, so every variant gathers K and V, computes, and adds the results to float32
pools. `out` and `lse` come from an untimed forward.

Reads a JSON object a line from stdin, {"batch", "heads", "kv_heads", "length", "head_dim",
"block_size", "dtype"}, and answers each with a line: a list of {"variant", "best_ms", "median_ms",
"error"}, where error is the largest relative to the largest element in float64, or null where
float64 would need too much memory.
"""

import json
import math
import statistics
import sys
import time

import torch

RUNS, SECONDS = 9, 1.0  # at least so many runs, and more until the time is over
ROWS = 256  # queries of a block of the blocked variant
LARGEST_CHECKED = 1 << 25  # scores
TOLERANCE = {"f32": 1e-5, "bf16": 4e-2}  # a peer that is wrong is none
DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16}


class Job:
    """Tensors of a batch with self-attention and a causal mask."""

    def __init__(self, batch, heads, kv_heads, length, head_dim, block_size, dtype):
        if length % block_size:
            raise ValueError(f"length is {length}, expected a multiple of {block_size}")
        torch.manual_seed(1)
        self.batch, self.length, self.kv_heads = batch, length, kv_heads
        self.group = heads // kv_heads
        self.dtype = DTYPES[dtype]
        self.scale = 1 / math.sqrt(head_dim)
        blocks = batch * length // block_size
        self.table = torch.randperm(blocks)
        self.block = (block_size, kv_heads, head_dim)
        self.k_pool, self.v_pool = (self.normal(blocks, *self.block) for _ in "kv")
        self.q, self.dout = (self.normal(batch, heads, length, head_dim) for _ in "qo")
        k, v = self.gather()
        self.out, self.lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            self.q, self.widen(k), self.widen(v), 0.0, True, scale=self.scale
        )

    def normal(self, *shape):
        return torch.randn(shape).to(self.dtype)

    def gather(self):
        """Dense keys and values, [B, H_kv, S, D]."""
        shape = (self.batch, self.length, *self.block[1:])
        return [
            pool.index_select(0, self.table).view(shape).transpose(1, 2).contiguous()
            for pool in (self.k_pool, self.v_pool)
        ]

    def scatter_add(self, *gradients):
        """Pools of the gradients of dense keys and values."""
        pools = []
        for gradient in gradients:
            rows = gradient.transpose(1, 2).reshape(-1, *self.block).float()
            pools.append(torch.zeros_like(rows).index_add_(0, self.table, rows))
        return pools

    def widen(self, x):
        """KV heads for every query head."""
        return x.repeat_interleave(self.group, 1) if self.group > 1 else x

    def fold(self, gradient):
        """Sum over the query heads of a KV head."""
        return gradient.unflatten(1, (self.kv_heads, self.group)).float().sum(2)

    def flash(self, k, v):
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            self.dout, self.q, k, v, self.out, self.lse, 0.0, True, scale=self.scale
        )

    def flash_expanded_heads(self):
        k, v = self.gather()
        dq, dk, dv = self.flash(self.widen(k), self.widen(v))
        return [dq, *self.scatter_add(self.fold(dk), self.fold(dv))]

    def flash_shared_heads(self):
        dq, dk, dv = self.flash(*self.gather())
        return [dq, *self.scatter_add(dk, dv)]

    def blocked_products(self):
        """Unfused, as well as library calls can: the heads of a group in one product, some rows at
        a time, no keys after the last one that the rows see, probabilities from lse."""
        k, v = self.gather()
        dq = torch.empty_like(self.q)
        dk, dv = (torch.zeros(x.shape) for x in (k, v))
        for b in range(self.batch):
            for head in range(self.kv_heads):
                for begin in range(0, self.length, ROWS):
                    self.add_block(b, head, begin, k[b, head], v[b, head], dq, dk, dv)
        return [dq, *self.scatter_add(dk, dv)]

    def add_block(self, b, head, begin, k, v, dq, dk, dv):
        """Gradients through the query rows from `begin` on of the heads that share a KV head."""
        end = min(begin + ROWS, self.length)
        rows = (b, slice(head * self.group, (head + 1) * self.group), slice(begin, end))
        q, dout, out = (x[rows].flatten(0, 1) for x in (self.q, self.dout, self.out))
        k, v = k[:end], v[:end]
        p = torch.mm(q, k.t()).float()
        p.mul_(self.scale).sub_(self.lse[rows].float().reshape(-1, 1)).exp_()
        after = torch.ones(end - begin, end - begin, dtype=torch.bool).triu(1)
        p.view(self.group, -1, end)[:, :, begin:].masked_fill_(after, 0)
        delta = (dout.float() * out.float()).sum(-1, keepdim=True)
        ds = torch.mm(dout, v.t()).float().sub_(delta).mul_(p).mul_(self.scale).to(self.dtype)
        dv[b, head, :end] += torch.mm(p.to(self.dtype).t(), dout)
        dk[b, head, :end] += torch.mm(ds.t(), q)
        dq[rows] = torch.mm(ds, k).view(self.group, -1, k.shape[-1])

    def reference(self):
        """Gradients in float64, by autograd; None if that needs too much memory."""
        if self.q.shape[0] * self.q.shape[1] * self.length**2 > LARGEST_CHECKED:
            return None
        with torch.enable_grad():
            q, k_pool, v_pool = (
                x.double().requires_grad_() for x in (self.q, self.k_pool, self.v_pool)
            )
            k, v = (
                self.widen(
                    pool[self.table].view(self.batch, self.length, *self.block[1:]).transpose(1, 2)
                )
                for pool in (k_pool, v_pool)
            )
            scores = self.scale * q @ k.transpose(-1, -2)
            after = torch.ones(self.length, self.length, dtype=torch.bool).triu(1)
            out = scores.masked_fill(after, -math.inf).softmax(-1) @ v
            return torch.autograd.grad(out, (q, k_pool, v_pool), self.dout.double())


def milliseconds(call):
    """Of each run, after two that warm up."""
    call(), call()
    times, start = [], time.perf_counter()
    while len(times) < RUNS or time.perf_counter() - start < SECONDS:
        begin = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - begin))
    return times


def error(results, reference):
    return max(
        ((result.double() - exact).abs().max() / exact.abs().max()).item()
        for result, exact in zip(results, reference)
    )


def measure(request):
    job = Job(**request)
    reference = job.reference()
    answer = []
    for variant in (job.flash_expanded_heads, job.flash_shared_heads, job.blocked_products):
        largest = error(variant(), reference) if reference else None
        if largest is not None and not largest <= TOLERANCE[request["dtype"]]:
            raise ArithmeticError(f"{variant.__name__} of {request}: error {largest}")
        times = milliseconds(variant)
        answer.append(
            {
                "variant": variant.__name__,
                "best_ms": min(times),
                "median_ms": statistics.median(times),
                "error": largest,
            }
        )
    return answer


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    torch.set_num_threads(int(sys.argv[1]))
    for line in sys.stdin:
        print(json.dumps(measure(json.loads(line))), flush=True)
