"""Tiles: what the forward and the backward Triton kernels share.

A tensor's last dimension is read in two parts, W0 and W1 channels (72 = 64 + 16 with the last 8 masked): padding 72 to
128 would issue 128 / 80 of the matrix instructions. W1 is 0 where one part is enough; the second part is then an alias
of the first, which the compiler drops.

Offsets of tiles are int64. Strides come in units of UNIT elements (16 bytes), because a multiplication by a constant is
how the compiler learns that a row of 72 or 40 channels starts at an aligned address: the launcher only tells it whether
a stride divides by 16.

A tensor of several heads is handed around as (pointer, strides of batch, head and token), lists as (pointer to the
counts, to the indices, strides of batch and head of the counts, of batch, head and block of the indices).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def program_place(num_tiles, num_heads, TILE: tl.constexpr):
    """A program's first token, head over all sequences, sequence and head; the last three int64.

    Programs go head by head, so that those which run together read the same rows out of L2.
    """
    start = (tl.program_id(0) % num_tiles) * TILE
    head = tl.program_id(0) // num_tiles
    return start, head.to(tl.int64), (head // num_heads).to(tl.int64), (head % num_heads).to(tl.int64)


@triton.jit
def valid_tokens(len_ptr, block, start, num_tokens, BLOCK: tl.constexpr):
    """How many tokens from `start` on are valid in `block` (may be 0 or less); len_ptr None: all that exist."""
    end = num_tokens
    if len_ptr is not None:
        end = tl.minimum(num_tokens, block * BLOCK + tl.load(len_ptr + block))
    return end - start


@triton.jit
def list_start(lists, b, h, block):
    """Where a block's list begins, and how many of its entries count."""
    num_ptr, _, num_stride_b, num_stride_h, idx_stride_b, idx_stride_h, idx_stride_n = lists
    start = b * idx_stride_b + h * idx_stride_h + block.to(tl.int64) * idx_stride_n
    return start, tl.load(num_ptr + b * num_stride_b + h * num_stride_h + block)


@triton.jit
def list_entry(lists, mask_ptr, at, inside):
    """An entry's block, and its row of the bit masks (-1: the block counts whole); 0 and -1 where not `inside`."""
    block = tl.load(lists[1] + at, mask=inside, other=0)
    mask = block
    if mask_ptr is not None:
        mask = tl.load(mask_ptr + at, mask=inside, other=-1)
    return block, mask


@triton.jit
def load_tile(base, rows, row_stride, valid, FIRST: tl.constexpr, WIDTH: tl.constexpr, LIMIT: tl.constexpr,
              RAGGED: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """[rows, WIDTH]: channels FIRST and on; zeros from row `valid` (if RAGGED) and from channel LIMIT on."""
    cols = FIRST + tl.arange(0, WIDTH)
    pointers = base + rows[:, None] * row_stride * UNIT + cols[None, :]
    if RAGGED:
        mask = rows[:, None] < valid
        if FIRST + WIDTH > LIMIT:
            mask = mask & (cols[None, :] < LIMIT)
        tile = tl.load(pointers, mask=mask, other=0.0)
    elif FIRST + WIDTH > LIMIT:
        tile = tl.load(pointers, mask=cols[None, :] < LIMIT, other=0.0)
    else:
        tile = tl.load(pointers)
    # The interpreter multiplies the bit patterns of bf16, so there (and only there) operands are widened.
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def load_parts(x, b, h, start, rows, valid, W: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr,
               RAGGED: tl.constexpr, UNIT: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """A tile of W channels, from token `start` on, as its two parts [rows, W0] and [rows, W1]."""
    pointer, stride_b, stride_h, stride_n = x
    base = pointer + (b * stride_b + h * stride_h + start.to(tl.int64) * stride_n) * UNIT
    part0 = load_tile(base, rows, stride_n, valid, 0, W0, W, RAGGED, UNIT, UPCAST)
    part1 = part0
    if W1 > 0:
        part1 = load_tile(base, rows, stride_n, valid, W0, W1, W, RAGGED, UNIT, UPCAST)
    return part0, part1


@triton.jit
def zero_parts(ROWS: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr):
    """fp32 accumulators of the two parts."""
    part0 = tl.zeros([ROWS, W0], dtype=tl.float32)
    part1 = part0
    if W1 > 0:
        part1 = tl.zeros([ROWS, W1], dtype=tl.float32)
    return part0, part1


@triton.jit
def store_parts(base, rows, valid, part0, part1, W: tl.constexpr, W0: tl.constexpr, W1: tl.constexpr):
    """Write rows below `valid` of a dense [rows, W] tile."""
    dtype = base.dtype.element_ty
    cols = tl.arange(0, W0)
    pointers = base + rows[:, None] * W
    tl.store(pointers + cols[None, :], part0.to(dtype), mask=(rows[:, None] < valid) & (cols[None, :] < W))
    if W1 > 0:
        cols = W0 + tl.arange(0, W1)
        tl.store(pointers + cols[None, :], part1.to(dtype), mask=(rows[:, None] < valid) & (cols[None, :] < W))


@triton.jit
def scale_parts(part0, part1, factor, SPLIT: tl.constexpr):
    """Both parts times a factor that broadcasts."""
    part0 = part0 * factor
    if SPLIT:
        part1 = part1 * factor
    return part0, part1


@triton.jit
def dot_channels(a0, a1, b0, b1, SPLIT: tl.constexpr):
    """a [A, channels] times the transpose of b [B, channels]: fp32 [A, B]."""
    product = tl.dot(a0, tl.trans(b0), input_precision="ieee")
    if SPLIT:
        product = tl.dot(a1, tl.trans(b1), product, input_precision="ieee")
    return product


@triton.jit
def add_product(acc0, acc1, weights, b0, b1, SPLIT: tl.constexpr):
    """acc [A, channels] + weights [A, B] times b [B, channels]; weights in the operands' own dtype."""
    # In the interpreter b has been widened: the weights are rounded as on a GPU, and then widened, too.
    weights = weights.to(b0.dtype)
    acc0 = tl.dot(weights, b0, acc0, input_precision="ieee")
    if SPLIT:
        acc1 = tl.dot(weights, b1, acc1, input_precision="ieee")
    return acc0, acc1


@triton.jit
def bias_log2(bias, keys, valid):
    """The bias of a tile of keys, `bias` pointing to the first, in units of log2, fp32 [keys]; 0 from `valid` on."""
    return tl.load(bias + keys, mask=keys < valid, other=0.0) * LOG2E


@triton.jit
def keep_marked(s, bits_ptr, mask, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
                BLOCK_ROWS: tl.constexpr, BLOCK_COLUMNS: tl.constexpr):  # fmt: skip
    """s [ROWS, COLUMNS], a tile at (row, column) of a block, with -inf where the block's bit mask says no.

    Mask -1 keeps everything, and reads nothing. A row has one word for 32 columns. The matrix instructions give a
    thread columns 8 i + 2 (lane % 4) and the next: its words are shifted once by the part that is the lane's, and each
    column then tests a bit whose place the compiler knows.
    """
    WORDS: tl.constexpr = (BLOCK_COLUMNS + 31) // 32
    columns = tl.arange(0, COLUMNS)
    pointers = bits_ptr + (mask.to(tl.int64) * BLOCK_ROWS + row) * WORDS + column // 32 + tl.arange(0, ROWS) * WORDS
    words = tl.load(pointers, mask=mask >= 0, other=-1)[:, None]
    for word in tl.static_range(1, COLUMNS // 32):
        following = tl.load(pointers + word, mask=mask >= 0, other=-1)[:, None]
        words = tl.where(columns[None, :] < 32 * word, words, following)
    if COLUMNS < 32:
        words = words >> column % 32
    words = words >> (columns & 6)[None, :]
    return tl.where(words & (1 << (columns & 25))[None, :] != 0, s, float("-inf"))
