"""Muon for the 2-D matrices inside the blocks and AdamW for all else (or for all), on fp32 master copies, with an EMA.

The network itself may be bf16: it holds rounded copies of the masters. Autocast would cast every weight at
every use; rounding once a step costs a tenth of that on a CPU.
"""

from typing import Any

import torch
from torch import Tensor, nn

from mezzotint.training.config import OptimConfig

Named = dict[str, Tensor]


def is_muon_parameter(name: str, parameter: Tensor) -> bool:
    """Muon orthogonalises a matrix that maps tokens to tokens: the Linears of the blocks, not their tables."""
    return parameter.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight")


def learning_rate_factor(step: int, max_steps: int, config: OptimConfig) -> float:
    """Factor on the rates at `step` (from 0): linear warm-up, constant, then linear to 0 at max_steps."""
    warm = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    decay_steps = max(1.0, config.decay_fraction * max_steps)
    return warm * min(1.0, max(0.0, (max_steps - step) / decay_steps))


class MasterOptimizer:
    """Steps fp32 masters by the network's gradients and writes them back, rounded to the network's dtype."""

    def __init__(self, network: nn.Module, config: OptimConfig, masters: Named | None = None) -> None:
        """`masters` None copies the network's own parameters (which should then be fp32 still)."""
        self.config = config
        self.live = dict(network.named_parameters())
        source = masters if masters is not None else {n: p.detach() for n, p in self.live.items()}
        self.masters = {n: nn.Parameter(source[n].detach().float().clone()) for n in self.live}
        self.ema = {n: p.detach().clone() for n, p in self.masters.items()}
        chosen = {n for n, p in self.masters.items() if config.muon and is_muon_parameter(n, p)}
        muon = [p for n, p in self.masters.items() if n in chosen]
        other = [p for n, p in self.masters.items() if n not in chosen]
        self.muon = torch.optim.Muon(
            muon, lr=config.muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        ) if config.muon else None
        self.adamw = torch.optim.AdamW(
            other, lr=config.adamw_lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
        )

    @torch.no_grad()
    def step(self, factor: float, step: int) -> float:
        """One update at `factor` of the full rates; returns the gradient's norm before clipping."""
        for name, master in self.masters.items():
            grad = self.live[name].grad
            master.grad = None if grad is None else grad.float()
            self.live[name].grad = None
        norm = nn.utils.clip_grad_norm_(self.masters.values(), self.config.grad_clip)
        for optimizer, rate in ((self.muon, self.config.muon_lr), (self.adamw, self.config.adamw_lr)):
            if optimizer is None:
                continue
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        self._update_ema(step)
        self.write_back()
        return float(norm)

    def _update_ema(self, step: int) -> None:
        # A young run would average its random start for hundreds of steps; the ramp forgets it.
        decay = min(self.config.ema_decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.ema.values()), list(self.masters.values()), 1 - decay)

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the masters into the network, rounded to its dtype."""
        torch._foreach_copy_(list(self.live.values()), list(self.masters.values()))

    def state_dict(self) -> dict[str, Any]:
        """State of both optimizers; the masters and the EMA are saved apart, as safetensors."""
        return {"muon": self.muon and self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any], masters: Named, ema: Named) -> None:
        """Take up a saved state, masters and EMA by name."""
        with torch.no_grad():
            for name, master in self.masters.items():
                master.copy_(masters[name])
                self.ema[name].copy_(ema[name])
        if self.muon is not None:
            self.muon.load_state_dict(state["muon"])
        self.adamw.load_state_dict(state["adamw"])
        self.write_back()


