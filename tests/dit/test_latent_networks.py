"""The networks over latents: sizes, grids, what they depend on, saving, gradients, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mezzotint.dit.class_dit import ClassDiT
from mezzotint.dit.latent_config import ClassDiTConfig, PixArtConfig, VideoDiTConfig
from mezzotint.dit.latent_network import LatentNetwork
from mezzotint.dit.pixart import PixArt
from mezzotint.dit.surroundings import Surroundings
from mezzotint.dit.video_dit import VideoDiT

SMALL = {"sample_size": 16, "hidden_size": 24, "num_layers": 6, "num_heads": 2, "segments": "1 + 1x[1,1,1,1] + 1"}
T, LABELS = torch.tensor([37.0, 812.0]), torch.tensor([3, 7])
NETWORKS = ("class", "video", "pixart")


def network(kind: str, seed: int = 0, **more: Any) -> LatentNetwork:
    """A small one with weights that are nowhere zero."""
    torch.manual_seed(seed)
    if kind == "class":
        made: LatentNetwork = ClassDiT(**SMALL | {"num_classes": 7} | more)
    elif kind == "video":
        made = VideoDiT(**SMALL | {"num_classes": 7, "num_layers": 12, "num_frames": 3} | more)
    else:
        made = PixArt(**SMALL | {"text_size": 10} | more)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return made.eval()


def inputs(kind: str, rows: int = 16, columns: int = 16) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    frames = (3,) if kind == "video" else ()
    x = torch.randn(2, *frames, 4, rows, columns)
    return (x, T, torch.randn(2, 5, 10)) if kind == "pixart" else (x, T, LABELS)


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize(("rows", "columns", "grid"), [(16, 16, (4, 4)), (12, 20, (4, 3)), (2, 30, (1, 1))])
@torch.no_grad()
def test_any_size_on_the_patch_works_on_any_grid(kind: str, rows: int, columns: int, grid: tuple[int, int]) -> None:
    given = inputs(kind, rows, columns)
    out = network(kind)(*given, grid=grid)
    assert out.shape == (*given[0].shape[:-3], 8, rows, columns)
    assert out.isfinite().all()
    assert out.std() > 0.01


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_each_input_and_the_grid_matter(kind: str) -> None:
    made, given = network(kind), inputs(kind)
    out = made(*given, grid=(4, 4))
    for i in range(3):
        changed = list(given)
        changed[i] = given[i].flip(0)
        assert (made(*changed, grid=(4, 4)) - out).abs().max() > 1e-4, f"input {i} changes nothing"
    assert (made(*given, grid=(4, 5)) - out).abs().max() > 1e-4


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_without_a_grid_all_tokens_or_the_default_are_kept(kind: str) -> None:
    given = inputs(kind)
    assert torch.equal(network(kind)(*given), network(kind)(*given, grid=(8, 8)))
    chosen = network(kind, default_grid=[3, 5])
    assert torch.equal(chosen(*given), network(kind)(*given, grid=(3, 5)))


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_a_sample_does_not_depend_on_its_neighbours_in_the_batch(kind: str) -> None:
    made, given = network(kind), inputs(kind)
    alone = torch.cat([made(*(part[i : i + 1] for part in given), grid=(3, 4)) for i in range(2)])
    torch.testing.assert_close(made(*given, grid=(3, 4)), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_a_saved_network_comes_back_whole(kind: str, tmp_path: Path) -> None:
    made, given = network(kind), inputs(kind)
    made.save_pretrained(tmp_path)
    again = type(made).from_pretrained(tmp_path)
    assert again.shape == made.shape
    assert torch.equal(again(*given, grid=(3, 4)), made(*given, grid=(3, 4)))


@pytest.mark.parametrize("kind", NETWORKS)
def test_gradient_checkpointing_gives_the_same_gradients(kind: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        made = network(kind).train()
        if checkpointing:
            made.enable_gradient_checkpointing()
        runs: list[int] = []
        made.blocks[0].register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        made(*inputs(kind), grid=(3, 4)).square().sum().backward()
        assert len(runs) == 1 + checkpointing
        gradients.append({name: p.grad for name, p in made.named_parameters() if p.requires_grad})
    assert all(grad is not None for grad in gradients[0].values())
    for name, plain in gradients[0].items():
        torch.testing.assert_close(plain, gradients[1][name])


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_bf16_stays_close_to_fp32(kind: str) -> None:
    made, given = network(kind), inputs(kind)
    exact = made(*given, grid=(3, 4))
    rounded = made.bfloat16()(*given, grid=(3, 4)).float()
    assert ((rounded - exact).norm() / exact.norm()).item() < 0.05


@pytest.mark.parametrize("kind", NETWORKS)
@torch.no_grad()
def test_readding_positions_changes_a_pass_and_is_off_by_default(kind: str) -> None:
    made, given = network(kind), inputs(kind)
    assert not made.config.readd_positions
    again = network(kind, readd_positions=True)
    again.load_state_dict(made.state_dict())
    assert (again(*given, grid=(3, 4)) - made(*given, grid=(3, 4))).abs().max() > 1e-4


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_fresh_network_returns_zero_and_freezes_its_positions(kind: str) -> None:
    torch.manual_seed(0)
    more: dict[str, Any] = {"class": {"num_classes": 7}, "video": {"num_classes": 7, "num_layers": 12}}.get(kind, {})
    made = {"class": ClassDiT, "video": VideoDiT, "pixart": PixArt}[kind](**SMALL | more, **(
        {"text_size": 10} if kind == "pixart" else {}))
    assert made(*inputs(kind), grid=(3, 4)).abs().max() == 0
    if kind != "pixart":
        tokens, frames = torch.randn(2, 3 * 64, 24), 3 if kind == "video" else 1
        assert torch.equal(made.blocks[0](tokens, torch.randn(2, 24), Surroundings(frames=frames)), tokens)
    frozen = {name for name, p in made.named_parameters() if not p.requires_grad}
    assert frozen == {"positions", "frame_positions"} & {name for name, _ in made.named_parameters()}


@torch.no_grad()
def test_a_clip_whose_frames_never_meet_is_its_pictures() -> None:
    """With temporal blocks that add nothing, each frame passes the segments as a picture does."""
    video, picture = network("video"), network("class")
    video.frame_positions.zero_()
    for pair, block in zip(video.blocks, picture.blocks, strict=True):
        pair.temporal.modulation.weight.zero_()
        pair.temporal.modulation.bias.zero_()
        pair.spatial.load_state_dict(block.state_dict())
    rest = {name: t for name, t in picture.state_dict().items() if not name.startswith("blocks.")}
    video.load_state_dict(rest, strict=False)
    x, t, y = inputs("video", 12, 20)
    pictures = torch.stack([picture(frame, t, y, grid=(3, 4)) for frame in x.unbind(1)], dim=1)
    torch.testing.assert_close(video(x, t, y, grid=(3, 4)), pictures, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_frames_meet_in_temporal_blocks_at_their_own_place_only() -> None:
    """Without segments, and with spatial blocks that add nothing, a place sees only itself over time."""
    video = network("video", segments=None, num_layers=4)
    for pair in video.blocks:
        pair.spatial.modulation.weight.zero_()
        pair.spatial.modulation.bias.zero_()
    x, t, y = inputs("video")
    out, touched = video(x, t, y), x.clone()
    touched[:, 0, :, :2, :2] += 1
    changed = (video(touched, t, y) - out).abs().amax(dim=(0, 2))
    assert changed[:, :2, :2].min() > 0
    changed[:, :2, :2] = 0
    assert changed.max() < 1e-6


@torch.no_grad()
def test_clips_of_another_length_can_be_drawn() -> None:
    video, (x, t, y) = network("video"), inputs("video")
    longer = torch.cat([x, x], dim=1)
    assert video(longer, t, y, grid=(3, 4)).shape == (2, 6, 8, 16, 16)


@torch.no_grad()
def test_padding_of_the_text_is_not_seen() -> None:
    made, (x, t, text) = network("pixart"), inputs("pixart")
    mask = torch.arange(5) < torch.tensor([[2], [5]])
    dirty = torch.where(mask[..., None], text, torch.full_like(text, 7.0))
    torch.testing.assert_close(made(x, t, dirty, mask, grid=(3, 4)), made(x, t, text, mask, grid=(3, 4)))
    assert made(x, t, text, torch.zeros_like(mask), grid=(3, 4)).isfinite().all()


@pytest.mark.parametrize("kind", NETWORKS)
def test_sizes_that_do_not_fit_are_refused(kind: str) -> None:
    made, given = network(kind), inputs(kind)
    with pytest.raises(ValueError, match=r"grid is \(9, 4\); it must be at most \(8, 8\)"):
        made(*given, grid=(9, 4))
    with pytest.raises(ValueError, match="width is 15; it must be a positive multiple of 2"):
        made(given[0][..., :15], *given[1:])


@pytest.mark.parametrize(
    ("config", "change", "named"),
    [
        (ClassDiTConfig, {"num_layers": 7}, "adds up to 6 blocks, and there are 7"),
        (ClassDiTConfig, {"hidden_size": 26}, "hidden_size is 26"),
        (ClassDiTConfig, {"patch_size": 3}, "sample_size is 16; it must be a multiple of patch_size 3"),
        (ClassDiTConfig, {"num_heads": 0}, "num_heads is 0"),
        (ClassDiTConfig, {"default_grid": (9, 9)}, r"grid is \(9, 9\)"),
        (ClassDiTConfig, {"num_classes": -1}, "num_classes is -1"),
        (ClassDiTConfig, {"frequency_shift": 2}, "frequency_shift is 2"),
        (ClassDiTConfig, {"mlp_norm_eps": 0.0}, "mlp_norm_eps is 0.0"),
        (VideoDiTConfig, {"num_layers": 6}, "adds up to 6 blocks, and there are 3"),
        (VideoDiTConfig, {"num_layers": 10, "segments": "0 + 1x[1,1,1,1] + 1"}, "it must start with at least one pair"),
        (VideoDiTConfig, {"num_layers": 12, "num_frames": 0}, "num_frames is 0"),
        (PixArtConfig, {"text_size": 0}, "text_size is 0"),
        (PixArtConfig, {"size_conditions": True, "hidden_size": 20}, "hidden_size is 20; .* multiple of 3"),
    ],
)
def test_an_impossible_shape_is_refused_by_name(config: Any, change: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        config(**SMALL | change)
