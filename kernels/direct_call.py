"""When an operation may call its backend without torch's dispatcher.

An operation of torch.library written in Python costs some 50 microseconds a call, twice what a small kernel takes.
Nobody needs it where no gradient is recorded and nobody watches or traces.
"""

import torch
from torch import Tensor
from torch.compiler import is_compiling


def may_call_directly(*tensors: Tensor | None) -> bool:
    """Whether the result is the same without the dispatcher: plain tensors, no gradient, and nobody who watches."""
    if is_watched():
        return False
    records = torch.is_grad_enabled()
    return all(x is None or (type(x) in _PLAIN and not (records and x.requires_grad)) for x in tensors)


def is_watched() -> bool:
    """Whether torch.compile traces, or a functional transform or a dispatch mode (a FLOP counter, fake tensors) is
    on."""
    if is_compiling():  # first: what follows cannot be traced
        return True
    return bool(_num_modes() or _innermost_transform())


_PLAIN = (Tensor, torch.nn.Parameter)
_num_modes = torch._C._len_torch_dispatch_stack
_innermost_transform = torch._C._functorch.peek_interpreter_stack
