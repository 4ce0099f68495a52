"""A PNG carries the request that drew it."""

import hashlib
import io
import subprocess
import sys

import numpy as np
from PIL import Image

from mezzotint.sampling.engine import Drawn
from mezzotint.sampling.media import encode_png, provenance, read_metadata, sha256_hex
from mezzotint.sampling.null_engine import NullEngine
from mezzotint.sampling.request import GenerateRequest

REQUEST = GenerateRequest(
    prompt="ein Apfel, 红苹果 \N{RED APPLE}\nrow two", negative_prompt="text", width=64, height=32, seed=41,
    num_images=3, guidance_scale=2.5,
)


def drawn(request: GenerateRequest = REQUEST) -> Drawn:
    return NullEngine().draw(request)


def test_pixels_and_metadata_come_back_as_they_were() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8))
    metadata = {"request": REQUEST.model_dump(mode="json"), "numbers": [1, 2.5, None]}
    back = Image.open(io.BytesIO(encode_png(image, metadata)))
    assert back.format == "PNG"
    assert back.tobytes() == image.tobytes()
    assert read_metadata(back) == metadata


def test_the_metadata_is_a_text_chunk_that_other_programs_read() -> None:
    data = encode_png(Image.new("RGB", (1, 1)), {"a": "b"})
    length = int.from_bytes(data[33:37], "big")
    assert data[37:41] == b"iTXt"
    assert data[41 : 41 + length] == b'mezzotint\0\0\0\0\0{"a": "b"}'


def test_the_same_picture_gives_the_same_bytes_in_another_process() -> None:
    code = "from PIL import Image; from mezzotint.sampling.media import encode_png; import sys; " \
           "sys.stdout.buffer.write(encode_png(Image.new('RGB', (64, 64), 'red'), {'seed': 7}))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout
    assert there == encode_png(Image.new("RGB", (64, 64), "red"), {"seed": 7})


def test_a_picture_from_elsewhere_has_no_metadata() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, format="PNG")
    assert read_metadata(Image.open(buffer)) is None
    assert read_metadata(Image.new("RGB", (1, 1))) is None


def test_provenance_is_a_request_that_draws_that_picture_alone() -> None:
    result = drawn()
    for index in range(3):
        note = provenance(REQUEST, result, index)
        again = drawn(GenerateRequest.model_validate(note["request"]))
        assert len(again.images) == 1
        assert again.seeds == [41 + index]
        assert again.images[0].tobytes() == result.images[index].tobytes()
        assert note["model"] == {"name": "emoji-256", "fingerprint": "null"}


def test_the_prompt_can_be_left_out() -> None:
    private = REQUEST.model_copy(update={"include_prompt_in_metadata": False})
    data = encode_png(drawn().images[0], provenance(private, drawn(private), 0))
    assert b"Apfel" not in data
    assert read_metadata(Image.open(io.BytesIO(data)))["request"]["seed"] == 41  # type: ignore[index]


def test_the_address_of_a_file_is_its_sha256() -> None:
    assert sha256_hex(b"abc") == hashlib.sha256(b"abc").hexdigest()
