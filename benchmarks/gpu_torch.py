"""Times PyTorch on the shape that `gpu.py` times, for one stream: int4 weights in groups of 128, compiled and captured.

    python benchmarks/gpu_torch.py [--layers 32] [--depth 1000] [--rounds 5] [--plain]

One layer is compiled and used for all (`--plain`: none is); the whole step is one CUDA graph. Needs PyTorch.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional

HIDDEN, FFN, HEADS, KV_HEADS, SIZE, VOCAB, GROUP, STEPS = 4096, 14336, 32, 8, 128, 128_256, 128, 64
Tensor = torch.Tensor


def int4(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Random weights as PyTorch's int4 product takes them: packed, and scales with zeros."""
    packed = torch.ops.aten._convert_weight_to_int4pack(
        torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, device="cuda"), 8
    )
    scales = torch.full((columns // GROUP, rows, 2), 0.01, dtype=torch.bfloat16, device="cuda")
    return packed, scales


def times(x: Tensor, weight: tuple[Tensor, Tensor]) -> Tensor:
    """X [1, columns] times int4 weights."""
    return torch.ops.aten._weight_int4pack_mm(x, weight[0], GROUP, weight[1])


class Layer:
    """One layer's weights and KV entries."""

    def __init__(self, context: int) -> None:
        """Random weights, empty entries."""
        self.qkv, self.out = int4((HEADS + 2 * KV_HEADS) * SIZE, HIDDEN), int4(HIDDEN, HEADS * SIZE)
        self.gate_up, self.down = int4(2 * FFN, HIDDEN), int4(HIDDEN, FFN)
        self.norms = [torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda") for _ in range(2)]
        shape = (1, KV_HEADS, context, SIZE)
        self.key, self.value = (torch.zeros(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of [heads, size]."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


def layer_step(x: Tensor, layer: Layer, place: Tensor, mask: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """One layer for one token, x [1, hidden]."""
    normed = functional.rms_norm(x, (HIDDEN,), layer.norms[0])
    q, k, v = times(normed, layer.qkv).split([HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE], -1)
    layer.key.index_copy_(2, place, rotate(k.view(1, KV_HEADS, 1, SIZE), *turn))
    layer.value.index_copy_(2, place, v.view(1, KV_HEADS, 1, SIZE))
    query = rotate(q.view(1, HEADS, 1, SIZE), *turn)
    seen = functional.scaled_dot_product_attention(query, layer.key, layer.value, attn_mask=mask, enable_gqa=True)
    x = x + times(seen.reshape(1, -1), layer.out)
    gate, up = times(functional.rms_norm(x, (HIDDEN,), layer.norms[1]), layer.gate_up).chunk(2, -1)
    return x + times(functional.silu(gate) * up, layer.down)


def main() -> None:
    """Read the arguments, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--depth", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    context = given.depth + STEPS + 24
    layers = [Layer(context) for _ in range(given.layers)]
    output, x = int4(VOCAB, HIDDEN), torch.randn(1, HIDDEN, dtype=torch.bfloat16, device="cuda")
    place = torch.tensor([given.depth], device="cuda")
    turn = tuple(torch.ones(SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    mask = torch.ones(1, 1, 1, context, dtype=torch.bool, device="cuda")
    step_of = layer_step if given.plain else torch.compile(layer_step, dynamic=False)
    answer = torch.zeros(1, dtype=torch.long, device="cuda")

    def step() -> None:
        hidden = x
        for layer in layers:
            hidden = step_of(hidden, layer, place, mask, turn)
        answer.copy_(times(hidden, output).argmax(-1))

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    found = []
    for _ in range(given.rounds + 1):
        began = time.perf_counter()
        for _ in range(STEPS):
            graph.replay()
            answer.item()
        found.append((time.perf_counter() - began) / STEPS)
    middle = statistics.median(found[1:])
    how = "not compiled" if given.plain else "compiled"
    print(f"PyTorch {torch.__version__}, {torch.cuda.get_device_name()}, {given.layers} layers, {how}, captured, int4:")
    print(f"decode of 1 after {given.depth}: {1 / middle:.1f} tokens/s {1000 * middle:.3f} ms a step")


if __name__ == "__main__":
    main()
