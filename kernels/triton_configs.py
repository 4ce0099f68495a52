"""Which tiles, warps and stages each Triton kernel runs with, by architecture, element size and head dim.

The table was chosen by the compile report (compile_report.py: no spills, shared memory within the device's, CTAs an SM)
and is where every run starts; on a GPU the launcher times `candidates` once and keeps the fastest. Tiles are the
layout's blocks or subdivide them, so one entry serves all block sizes: `fit` cuts it down.
"""

from dataclasses import dataclass, replace

#: The kernels that loop over blocks.
PASSES = ("forward", "dq", "dkdv")

#: The side of a tile that a program of each keeps, and the one that it walks along.
_OWNED = {"forward": "tile_q", "dq": "tile_q", "dkdv": "tile_k"}
_LOOPED = {"forward": "tile_k", "dq": "tile_k", "dkdv": "tile_q"}

#: Widest head that the kernels take, in channels.
MAX_WIDTH = 256

#: Bytes of the widest load.
VECTOR_BYTES = 16

#: Least tile side: what the matrix instructions take.
MIN_TILE = 16


@dataclass(frozen=True, slots=True)
class TileConfig:
    """One way to run a kernel: query and key tokens a tile, warps a program, stages of the load pipeline."""

    tile_q: int
    tile_k: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelShape:
    """What a kernel is compiled for, its tiles apart.

    Args:
        head_dim, value_dim: channels of q and k, and of v: 1 to 256.
        block_q, block_k: tokens a block of the layout.
        itemsize: bytes an element, 2 or 4.
        group: query heads to each key head.
        ragged_q, ragged_k: some block has fewer valid tokens than its size, so loads and scores are masked.
        biased: there is a key_bias.
        masked: some block has a bit mask.
        upcast: widen operands to fp32, for the interpreter.
    """

    head_dim: int
    value_dim: int
    block_q: int
    block_k: int
    itemsize: int = 2
    group: int = 1
    ragged_q: bool = False
    ragged_k: bool = False
    biased: bool = False
    masked: bool = False
    upcast: bool = False

    def constants(self, config: TileConfig) -> dict[str, int | bool]:
        """The kernels' compile-time arguments."""
        (d0, d1), (v0, v1) = split_channels(self.head_dim), split_channels(self.value_dim)
        return {
            "GROUP": self.group, "D": self.head_dim, "D0": d0, "D1": d1, "V": self.value_dim, "V0": v0, "V1": v1,
            "BLOCK_Q": self.block_q, "BLOCK_K": self.block_k, "TILE_Q": config.tile_q, "TILE_K": config.tile_k,
            "RAGGED_Q": self.ragged_q, "RAGGED_K": self.ragged_k, "UNIT": VECTOR_BYTES // self.itemsize, "UPCAST": self.upcast,
        }  # fmt: skip


def check_head_dims(head_dim: int, value_dim: int) -> None:
    """Raises ValueError for a head dim outside of 1 to 256."""
    for width in (head_dim, value_dim):
        split_channels(width)


def split_channels(width: int) -> tuple[int, int]:
    """A head dim as two powers of two that the matrix instructions take, the second 0 where one part covers it.

    72 = 64 + 16, 40 = 32 + 16, 96 = 64 + 32, 64 = 64 + 0, 120 = 128 + 0 (two parts would cover no less). Raises
    ValueError outside 1 to 256.
    """
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"head dim is {width}; expected 1 to {MAX_WIDTH} channels for the Triton kernels")
    covering = max(MIN_TILE, 1 << (width - 1).bit_length())
    if covering in (width, MIN_TILE):
        return covering, 0
    first = covering // 2
    second = max(MIN_TILE, 1 << (width - first - 1).bit_length())
    return (covering, 0) if first + second == covering else (first, second)


#: (arch, pass) -> widest padded head dim -> configurations for falling sizes of blocks, on the side that a program owns.
Table = dict[tuple[int, str], dict[int, tuple[TileConfig, ...]]]

#: For elements of 2 bytes. sm_80's entries stay below the 99 KB that the smaller chips of its family (sm_86, sm_89) and
#: sm_120 give a program.
HALF_PRECISION: Table = {
    (90, "forward"): {
        80: (TileConfig(128, 64, 4, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 64, 1, 2)),
    },
}

#: For fp32, whose products are exact ("ieee") and so run outside the tensor cores.
FULL_PRECISION: Table = {
}


def table_arch(arch: int) -> int:
    """Which half of the table a device reads, by ten times its compute capability: Hopper has its own, all others from
    sm_80 on share one.

    Raises ValueError below sm_80, whose tensor cores lack bf16.
    """
    if arch < 80:
        found = f"{arch // 10}.{arch % 10}"
        raise ValueError(f"the device's compute capability is {found}; expected 8.0 or more for the Triton kernels")
    return 90 if arch // 10 == 9 else 80


def table_config(pass_name: str, arch: int, shape: KernelShape) -> TileConfig:
    """The table's entry for a kernel: its tiles are the layout's blocks, or divide them."""
    return _cut(pass_name, _entries(pass_name, arch, shape)[0], shape)


def candidates(pass_name: str, arch: int, shape: KernelShape) -> tuple[TileConfig, ...]:
    """What autotuning times, the table's entry first: more and fewer stages, a looped side of half and of twice the
    tokens, and the entry for smaller blocks."""
    entries = _entries(pass_name, arch, shape)
    first, looped = _cut(pass_name, entries[0], shape), _LOOPED[pass_name]
    others = [replace(first, num_stages=first.num_stages + step) for step in (1, -1) if first.num_stages + step >= 1]
    for size in (getattr(first, looped) // 2, getattr(first, looped) * 2):
        if MIN_TILE <= size <= getattr(shape, looped.replace("tile", "block")):
            others.append(replace(first, **{looped: size}))
    return (first, *others, *(_cut(pass_name, entry, shape) for entry in entries[1:2]))


def _entries(pass_name: str, arch: int, shape: KernelShape) -> tuple[TileConfig, ...]:
    """The table's entries whose owned side fits a block, the largest first."""
    width = max(sum(split_channels(shape.head_dim)), sum(split_channels(shape.value_dim)))
    by_width = (FULL_PRECISION if shape.itemsize == 4 else HALF_PRECISION)[arch, pass_name]
    entries = by_width[min(limit for limit in by_width if width <= limit)]
    owned = _OWNED[pass_name]
    return tuple(entry for entry in entries if getattr(entry, owned) <= getattr(shape, owned.replace("tile", "block")))


def _cut(pass_name: str, config: TileConfig, shape: KernelShape) -> TileConfig:
    """The same configuration with a looped side no larger than the layout's blocks."""
    looped = _LOOPED[pass_name]
    return replace(config, **{looped: min(getattr(config, looped), getattr(shape, looped.replace("tile", "block")))})
