"""Which tiles, warps and stages each Triton kernel runs with, by architecture, element size and head dim.

The table was chosen by the compile report (compile_report.py): each entry compiles without spilled registers and within
the device's shared memory, with every combination of features, for all head dims and blocks that it serves. It is where
every run starts; on a GPU the launcher times `candidates` once and keeps the fastest that does not spill. Tiles are the
layout's blocks or divide them.
"""

from dataclasses import dataclass, replace

#: The kernels that loop over blocks.
PASSES = ("forward", "dq", "dkdv")

#: Widest head that the kernels take, in channels.
MAX_WIDTH = 256

#: Bytes of the widest load.
VECTOR_BYTES = 16

#: Least tile side: what the matrix instructions take.
MIN_TILE = 16


@dataclass(frozen=True, slots=True)
class TileConfig:
    """One way to run a kernel.

    Args:
        rows: tokens that a program owns and writes: queries, or keys for dkdv.
        turn: tokens of the other side that it takes in one turn of its loop.
        num_warps: of a program. num_stages: of the load pipeline.
    """

    rows: int
    turn: int
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

    def blocks(self, pass_name: str) -> tuple[int, int]:
        """Tokens of a block on the side that a program of the pass owns, and on the side that it loops over."""
        return (self.block_k, self.block_q) if pass_name == "dkdv" else (self.block_q, self.block_k)

    def constants(self, pass_name: str, config: TileConfig) -> dict[str, int | bool]:
        """A kernel's compile-time arguments."""
        (d0, d1), (v0, v1) = split_channels(self.head_dim), split_channels(self.value_dim)
        tile_q, tile_k = (config.turn, config.rows) if pass_name == "dkdv" else (config.rows, config.turn)
        return {
            "GROUP": self.group, "D": self.head_dim, "D0": d0, "D1": d1, "V": self.value_dim, "V0": v0, "V1": v1,
            "BLOCK_Q": self.block_q, "BLOCK_K": self.block_k, "TILE_Q": tile_q, "TILE_K": tile_k,
            "RAGGED_Q": self.ragged_q, "RAGGED_K": self.ragged_k, "UNIT": VECTOR_BYTES // self.itemsize,
            "UPCAST": self.upcast,
        }  # fmt: skip


def check_head_dims(head_dim: int, value_dim: int) -> None:
    """Raises ValueError for a head dim outside of 1 to 256."""
    for width in (head_dim, value_dim):
        split_channels(width)


def split_channels(width: int) -> tuple[int, int]:
    """A head dim as two powers of two that the matrix instructions take, the second 0 where one part covers it.

    72 = 64 + 16, 40 = 32 + 16, 96 = 64 + 32, 64 = 64 + 0, 120 = 128 + 0 (two parts would cover no less). Beside 128 the
    second is 64: of less, eight warps would each compute the same. Raises ValueError outside 1 to 256.
    """
    if not 1 <= width <= MAX_WIDTH:
        raise ValueError(f"head dim is {width}; expected 1 to {MAX_WIDTH} channels for the Triton kernels")
    covering = max(MIN_TILE, 1 << (width - 1).bit_length())
    if covering in (width, MIN_TILE):
        return covering, 0
    first = covering // 2
    second = max(64 if first == 128 else MIN_TILE, 1 << (width - first - 1).bit_length())
    return (covering, 0) if first + second == covering else (first, second)


#: (arch, pass) -> widest padded head dim -> configurations, by falling rows: the first whose rows a block holds counts.
Table = dict[tuple[int, str], dict[int, tuple[TileConfig, ...]]]

#: For elements of 2 bytes. sm_80's entries stay below the 99 KB that the smaller chips of its family (sm_86, sm_89) and
#: sm_120 give a program.
HALF_PRECISION: Table = {
    (90, "forward"): {
        80: (TileConfig(128, 64, 4, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 32, 1, 1)),
        128: (TileConfig(128, 128, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 32, 1, 2)),
        256: (TileConfig(128, 64, 8, 2), TileConfig(64, 32, 4, 2), TileConfig(16, 32, 4, 2)),
    },
    (90, "dq"): {
        80: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 32, 2, 2), TileConfig(16, 32, 1, 2)),
        128: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 32, 2, 2), TileConfig(16, 32, 1, 2)),
        256: (TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2), TileConfig(32, 32, 4, 2), TileConfig(16, 16, 1, 2)),
    },
    (90, "dkdv"): {
        80: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 32, 2, 2), TileConfig(16, 32, 1, 2)),
        128: (TileConfig(128, 64, 8, 2), TileConfig(64, 32, 4, 2), TileConfig(32, 16, 2, 1), TileConfig(16, 32, 2, 2)),
        256: (TileConfig(64, 32, 8, 2), TileConfig(16, 16, 2, 2)),
    },
    (80, "forward"): {
        80: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 64, 1, 2)),
        128: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 32, 1, 2)),
        256: (TileConfig(64, 16, 4, 2), TileConfig(16, 32, 4, 2)),
    },
    (80, "dq"): {
        80: (TileConfig(128, 64, 8, 2), TileConfig(64, 32, 4, 2), TileConfig(32, 64, 2, 2), TileConfig(16, 32, 1, 2)),
        128: (TileConfig(128, 64, 8, 2), TileConfig(64, 64, 4, 2), TileConfig(32, 32, 2, 2), TileConfig(16, 32, 1, 2)),
        256: (TileConfig(32, 32, 4, 2), TileConfig(16, 32, 4, 2)),
    },
    (80, "dkdv"): {
        80: (TileConfig(128, 32, 8, 2), TileConfig(64, 32, 4, 2), TileConfig(32, 32, 2, 2), TileConfig(16, 32, 1, 2)),
        96: (TileConfig(128, 32, 8, 2), TileConfig(64, 16, 4, 2), TileConfig(32, 16, 2, 1), TileConfig(16, 16, 1, 2)),
        128: (TileConfig(64, 64, 8, 2), TileConfig(32, 16, 2, 1), TileConfig(16, 16, 1, 2)),
        256: (TileConfig(32, 16, 4, 2), TileConfig(16, 16, 2, 2)),
    },
}

_ON_ANY_ARCH: dict[str, dict[int, tuple[TileConfig, ...]]] = {
    "forward": {
        80: (TileConfig(32, 32, 8, 1), TileConfig(16, 32, 4, 1)),
        128: (TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1)),
        256: (TileConfig(16, 16, 4, 1),),
    },
    "dq": {
        80: (TileConfig(32, 32, 4, 1), TileConfig(16, 16, 8, 1)),
        128: (TileConfig(32, 16, 4, 1), TileConfig(16, 32, 4, 1)),
        256: (TileConfig(16, 16, 4, 1),),
    },
    "dkdv": {
        80: (TileConfig(32, 32, 8, 1), TileConfig(16, 16, 8, 1)),
        128: (TileConfig(32, 16, 8, 1), TileConfig(16, 16, 4, 1)),
        256: (TileConfig(16, 16, 8, 1),),
    },
}

#: For fp32, whose products are exact ("ieee") and so run outside the tensor cores.
FULL_PRECISION: Table = {(arch, name): entries for arch in (90, 80) for name, entries in _ON_ANY_ARCH.items()}


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
    return _cut(_entries(pass_name, arch, shape)[0], pass_name, shape)


def candidates(pass_name: str, arch: int, shape: KernelShape) -> tuple[TileConfig, ...]:
    """What autotuning times, the table's entry first: more and fewer stages, half and twice the tokens a turn, and the
    entry for smaller blocks."""
    first, *smaller = (_cut(entry, pass_name, shape) for entry in _entries(pass_name, arch, shape)[:2])
    others = [replace(first, num_stages=first.num_stages + step) for step in (1, -1) if first.num_stages + step >= 1]
    turns = [turn for turn in (first.turn // 2, first.turn * 2) if MIN_TILE <= turn <= shape.blocks(pass_name)[1]]
    return (first, *others, *(replace(first, turn=turn) for turn in turns), *smaller)


def _entries(pass_name: str, arch: int, shape: KernelShape) -> list[TileConfig]:
    """The table's entries whose rows a block holds, the largest first."""
    width = max(sum(split_channels(shape.head_dim)), sum(split_channels(shape.value_dim)))
    by_width = (FULL_PRECISION if shape.itemsize == 4 else HALF_PRECISION)[arch, pass_name]
    entries = by_width[min(limit for limit in by_width if width <= limit)]
    return [entry for entry in entries if entry.rows <= shape.blocks(pass_name)[0]]


def _cut(config: TileConfig, pass_name: str, shape: KernelShape) -> TileConfig:
    return replace(config, turn=min(config.turn, shape.blocks(pass_name)[1]))
