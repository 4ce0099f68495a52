"""Batches are the same whoever decodes them."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.multiprocessing import active_children

from mezzotint.training.config import ConfigError, DataConfig
from mezzotint.training.data import PictureData, StepSampler
from mezzotint.training.feed import Batch, batches


@pytest.fixture(autouse=True)
def no_worker_outlives_its_test() -> Iterator[None]:
    """Workers do not end on SIGTERM, so one that a failed test left would keep the whole session waiting."""
    yield
    for worker in active_children():
        worker.kill()


def feed(path: Path, steps: range, num_workers: int) -> Iterator[Batch]:
    data = PictureData(DataConfig(path=str(path), num_workers=num_workers), 32)
    return batches(data, StepSampler(data.draw_weights(0), 4, seed=3), steps, num_workers)


def test_workers_decode_the_batches_of_the_same_steps(tiny_data: Path) -> None:
    here, away = list(feed(tiny_data, range(5, 11), 0)), list(feed(tiny_data, range(5, 11), 2))
    assert len(here) == len(away) == 6
    for (indices, pictures), (same_indices, same_pictures) in zip(here, away, strict=True):
        assert indices == same_indices
        assert torch.equal(pictures, same_pictures)
        assert pictures.shape == (4, 3, 32, 32)


def test_a_feed_that_starts_later_gives_the_later_batches(tiny_data: Path) -> None:
    whole = [indices for indices, _ in feed(tiny_data, range(6), 0)]
    assert [indices for indices, _ in feed(tiny_data, range(4, 6), 0)] == whole[4:]
    assert len({tuple(indices) for indices in whole}) > 1


def test_the_process_own_generator_is_left_alone(tiny_data: Path) -> None:
    before = torch.get_rng_state()
    next(feed(tiny_data, range(3), 0))
    assert torch.equal(torch.get_rng_state(), before)


def test_workers_outlive_a_stop_sent_to_the_whole_group(tiny_data: Path) -> None:
    running = feed(tiny_data, range(1000), 2)
    # Workers take the batches in turn: with two here, both have come up and set their signals aside.
    assert [len(next(running)[0]) for _ in range(2)] == [4, 4]
    workers = active_children()
    assert len(workers) == 2
    for worker in workers:
        assert worker.pid is not None
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(worker.pid, number)
    assert [len(next(running)[0]) for _ in range(20)] == [4] * 20
    assert all(worker.is_alive() for worker in workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_picture_is_one_sentence_from_a_worker_too(
    tmp_path: Path, make_imagefolder: Callable[..., Path], num_workers: int
) -> None:
    pictures: list[tuple[Image.Image, dict[str, Any]]] = [(Image.new("RGB", (64, 64)), {"text": "x"})]
    folder = make_imagefolder(tmp_path / "set", pictures)
    (folder / "000.png").write_bytes((folder / "000.png").read_bytes()[:60])
    with pytest.raises(ConfigError) as raised:
        next(feed(folder, range(3), num_workers))
    assert str(raised.value).startswith("data.path: picture 0 of the set cannot be read")
    assert "\n" not in str(raised.value)
