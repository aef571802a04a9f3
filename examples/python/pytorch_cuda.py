#!/usr/bin/env python3
"""A cache on a GPU under PyTorch: a prompt is read call by call, then one CUDA graph does every decode pass.

    python examples/python/pytorch_cuda.py [DEVICE]       "cuda:0"

The model is one layer of attention with random projections; PyTorch's own attention over all tokens says what
must come out. It needs PyTorch with CUDA, a GPU and libkvc_cuda, and says which of them is missing.
"""

import sys

import kvc

HEADS, KV_HEADS, HEAD_DIM, PROMPT, STEPS = 32, 8, 128, 200, 50


def torch_with_a_gpu():
    try:
        import torch
    except ImportError:
        sys.exit("this example needs PyTorch, which is not installed")
    if not torch.cuda.is_available():
        sys.exit("this example needs a GPU, and PyTorch finds none")
    return torch


def open_device(name):
    try:
        return kvc.Device(name)
    except kvc.BackendUnavailable as missing:
        sys.exit(f"this example needs a GPU: {missing}")


def wanted(torch, q, k, v):
    """The last row of q over all of k and v, as PyTorch attends."""
    heads = [each.float().transpose(0, 1) for each in (q[-1:], k, v)]
    k, v = (each.repeat_interleave(HEADS // KV_HEADS, 0) for each in heads[1:])
    return torch.nn.functional.scaled_dot_product_attention(heads[0], k, v).transpose(0, 1)


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "cuda:0"
    torch = torch_with_a_gpu()
    device = open_device(name)
    torch.cuda.set_device(device.place[1])
    torch.manual_seed(1)
    total = PROMPT + STEPS
    k, v = (torch.randn(total, KV_HEADS, HEAD_DIM, dtype=torch.bfloat16, device=name) for _ in "kv")
    q = torch.randn(total, HEADS, HEAD_DIM, dtype=torch.bfloat16, device=name)
    cache = kvc.Cache(
        n_layers=1,
        n_kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
        capacity=total,
        max_batch=PROMPT,
        max_q_heads=HEADS,
        dtype="bf16",
        device=device,
    )

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    worst = 0.0
    with torch.cuda.stream(stream):
        with cache.forward(range(PROMPT), stream=stream):
            out = cache.put_attention(0, k[:PROMPT], v[:PROMPT], q[:PROMPT])
        worst = max(worst, float((out[-1:] - wanted(torch, q[:PROMPT], k[:PROMPT], v[:PROMPT])).abs().max()))

        # What a decode pass does: its tensors stay, and each pass fills them.
        step_k, step_v, step_q = (torch.empty_like(each[:1]) for each in (k, v, q))
        step_out = torch.empty(1, HEADS, HEAD_DIM, device=name)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            cache.begin_reserve(1, stream=stream)
            cache.put_attention(0, step_k, step_v, step_q, step_out)
            cache.commit()

        for at in range(PROMPT, total):
            for step, all_of_it in ((step_k, k), (step_v, v), (step_q, q)):
                step.copy_(all_of_it[at : at + 1])
            with cache.forward([at], stream=stream, replay=True):
                graph.replay()
            of_torch = wanted(torch, q[: at + 1], k[: at + 1], v[: at + 1])
            worst = max(worst, float((step_out - of_torch).abs().max()))
    device.synchronize()
    if not worst < 1e-3:
        sys.exit(f"attention is off by {worst}")
    print(f"{PROMPT} tokens and {STEPS} replayed passes on {name}; at most {worst:.1e} from PyTorch's attention")


if __name__ == "__main__":
    main()
