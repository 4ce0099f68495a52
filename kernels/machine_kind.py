"""What kind of processor this is for attention: how far its matrix product outruns torch's attention.

Absolute figures hold on no other machine; this ratio says which of them can be compared.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from mezzotint.kernels.stopwatch import interleaved_medians


@dataclass(frozen=True, kw_only=True, slots=True)
class MachineKind:
    """GFLOP/s of a bf16 Linear and of bf16 SDPA. kind is "A" where the product is at least 3.7 times as fast (about
    5 were measured) and "B" below (2.7)."""

    threads: int
    linear_gflops: float
    sdpa_gflops: float

    @property
    def ratio(self) -> float:
        return self.linear_gflops / self.sdpa_gflops

    @property
    def kind(self) -> str:
        return "A" if self.ratio >= 3.7 else "B"


def measure_machine_kind() -> MachineKind:
    """Takes about two seconds on two cores."""
    x, weight = torch.randn(4096, 1152).bfloat16(), torch.randn(1152, 1152).bfloat16()
    q = torch.randn(1, 16, 1024, 72).bfloat16()
    seconds = interleaved_medians(
        {"linear": lambda: F.linear(x, weight), "sdpa": lambda: F.scaled_dot_product_attention(q, q, q)},
        torch.device("cpu"), rounds=15,
    )
    return MachineKind(
        threads=torch.get_num_threads(),
        linear_gflops=2 * 4096 * 1152 * 1152 / seconds["linear"] / 1e9,
        sdpa_gflops=4 * 16 * 1024 * 1024 * 72 / seconds["sdpa"] / 1e9,
    )


def describe_device(device: torch.device) -> dict[str, str | int | float]:
    """What a measurement was taken on, for JSON: a GPU by its name, a CPU by its kind and what it follows from."""
    if device.type == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(device)}
    kind = measure_machine_kind()
    return {
        "type": "cpu", "kind": kind.kind, "threads": kind.threads, "linear_bf16_gflops": round(kind.linear_gflops),
        "sdpa_bf16_gflops": round(kind.sdpa_gflops), "ratio": round(kind.ratio, 2),
    }
