"""What a run trains on: its cores shared out, and a line about it for the model's card."""

import os

import torch
from accelerate import Accelerator

from mezzotint.training.memory import keep_freed_memory


def use_all_cores(accelerator: Accelerator) -> None:
    """Share the cores between the processes here; accelerate's launcher leaves each CPU process a single one."""
    if accelerator.device.type == "cpu":
        here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, num_cores() // here))
        keep_freed_memory()


def num_cores() -> int:
    """Cores that this process may run on, where the system tells (Linux); else all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_hardware(accelerator: Accelerator) -> str:
    """"2 CPU cores", or "4 x NVIDIA H100"."""
    if accelerator.device.type == "cpu":
        return f"{num_cores()} CPU cores"
    kind = torch.cuda.get_device_name(accelerator.device) if accelerator.device.type == "cuda" else accelerator.device
    return f"{accelerator.num_processes} x {kind}"
