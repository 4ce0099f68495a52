"""The keys that diffusers' DiTTransformer2DModel and PixArtTransformer2DModel write alike."""

from mezzotint.dit.checkpoints.keys import Entry, linear, stacked


def block_entries(ours: str, theirs: str) -> list[Entry]:
    """Self-attention and feed-forward of one block."""
    return [
        *stacked(f"{ours}.attn.qkv", [f"{theirs}.attn1.to_{part}" for part in "qkv"]),
        *linear(f"{ours}.attn.proj", f"{theirs}.attn1.to_out.0"),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.ff.net.0.proj"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.ff.net.2"),
    ]
