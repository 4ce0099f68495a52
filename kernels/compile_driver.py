"""A stand-in for Triton's CUDA driver: what is launched under it is compiled for a named architecture, and not run.

So what is read is what a launch on a GPU compiles, arguments and their alignment included, on any Linux machine.
"""

import functools
import itertools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

_MAX_THREADS = 1024
_NUMBERS = itertools.count(1)


@dataclass(eq=False)
class Binary:
    """A compiled kernel: its PTX and what one program of it takes.

    Args:
        name: of the function.
        registers, stack_bytes: a thread; anything on the stack is spilled registers.
        shared_bytes: of a program.
        num_warps, num_stages: as it was launched.
        constants: its compile-time arguments by name.
        ptx: the text.
    """

    name: str
    registers: int
    stack_bytes: int
    shared_bytes: int
    num_warps: int = 0
    num_stages: int = 0
    constants: dict[str, Any] = field(default_factory=dict)
    ptx: str = ""


class CompileOnlyDriver(DriverBase):
    """Answers Triton's questions about a GPU of one architecture, and notes in `launched` what would have run on it.

    Args:
        arch: ten times the compute capability, 80 or 90.
        shared_limit: bytes of shared memory that the device is said to give a program; a kernel that wants more raises
            Triton's OutOfResources, as on a GPU.
    """

    def __init__(self, arch: int, shared_limit: int) -> None:
        self.arch, self.shared_limit = arch, shared_limit
        self.launched: list[Binary] = []
        self.utils = self
        self._number = -next(_NUMBERS)

    @classmethod
    def is_active(cls) -> bool:
        """Never chosen by Triton itself."""
        return False

    def get_current_target(self) -> Any:
        """What to compile for."""
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        """A number that no GPU has: Triton keeps compiled kernels by device."""
        return self._number

    def get_current_stream(self, device: int) -> int:
        """There is one, and nothing runs on it."""
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        """What Triton asks for before it loads a kernel."""
        return {"max_shared_mem": self.shared_limit}

    def load_binary(self, name: str, cubin: bytes, shared_bytes: int, device: int) -> tuple[Any, Binary, int, int, int]:
        """As the real one: module, function, registers, spilled words and the most threads of a program."""
        registers, stack_bytes = _resources(cubin)
        binary = Binary(name, registers, stack_bytes, shared_bytes)
        return name, binary, registers, stack_bytes // 4, _MAX_THREADS

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        """What Triton calls to launch a kernel: the function is its fifth argument."""
        names = source.fn.arg_names
        constants = {names[path[0]]: value for path, value in source.constants.items() if len(path) == 1}

        def launch(grid_x: int, grid_y: int, grid_z: int, stream: int, binary: Binary, *rest: Any) -> None:
            binary.num_warps, binary.num_stages, binary.constants = metadata.num_warps, metadata.num_stages, constants
            self.launched.append(binary)

        return launch

    def map_python_to_cpp_type(self, ty: str) -> str:
        """Not asked: nothing is launched from C."""
        raise NotImplementedError

    def get_active_torch_device(self) -> Any:
        """Not asked: there is no device."""
        raise NotImplementedError

    def get_benchmarker(self) -> Any:
        """Not asked: nothing can be timed."""
        raise NotImplementedError


@contextmanager
def compiling_for(arch: int, shared_limit: int = 2**31 - 1) -> Iterator[list[Binary]]:
    """Within it, launches compile for an architecture; gives the list that each launched kernel is added to."""
    driver = _driver(arch, shared_limit)
    driver.launched.clear()
    hooks = triton.knobs.runtime.kernel_load_end_hook
    hooks.add(_keep_ptx)
    triton.runtime.driver.set_active(driver)
    try:
        yield driver.launched
    finally:
        triton.runtime.driver.set_active(None)  # the next launch asks for the machine's own again
        hooks.remove(_keep_ptx)


@functools.cache
def _driver(arch: int, shared_limit: int) -> CompileOnlyDriver:
    """Kept, since Triton keeps the kernels that were compiled under it."""
    return CompileOnlyDriver(arch, shared_limit)


def _keep_ptx(module: Any, function: Any, name: str, metadata_group: dict[str, str], hash: str) -> None:
    """Triton calls it after load_binary, with the names of the kernel's files."""
    if isinstance(function, Binary):
        function.ptx = next(Path(path).read_text() for path in metadata_group.values() if path.endswith(".ptx"))


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from cuobjdump."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(path)]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    if found is None:
        raise ValueError(f"cuobjdump answered {text!r}; expected REG and STACK")
    return int(found[1]), int(found[2])
