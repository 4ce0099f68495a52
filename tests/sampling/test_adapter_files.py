"""Adapter files of ours come back as they were saved; hostile ones are refused in one sentence."""

import io
import json
import math
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from mezzotint.dit.adapters import linears
from mezzotint.dit.model import DiT
from mezzotint.sampling.adapter_card import AdapterCard
from mezzotint.sampling.adapter_files import adapter_names, adapters_folder, find_adapter
from mezzotint.sampling.adapters import load_adapter, pairs_of, read_adapter_tensors, save_adapter
from mezzotint.sampling.panels import panel_layout
from mezzotint.sampling.safetensors_header import MAX_HEADER_BYTES, AdapterFileError, read_header

FINGERPRINT = "0123456789abcdef"
KEY = "transformer.blocks.0.attn.qkv"


@pytest.fixture(autouse=True)
def own_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MEZZOTINT_ADAPTERS_DIR", str(tmp_path / "adapters"))
    return tmp_path / "adapters"


def network() -> DiT:
    return DiT(sample_size=32, patch_size=8, patch_bottleneck=12, hidden_size=32, num_layers=2, num_heads=2)


def pairs(rank: int = 4) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    there = linears(network())
    return {
        path: (torch.randn(rank, there[path].in_features, generator=generator).half(),
               torch.randn(there[path].out_features, rank, generator=generator).half())
        for path in ("blocks.0.attn.qkv", "blocks.1.mlp.fc2")
    }


def card(**changes: Any) -> AdapterCard:
    given_: dict[str, Any] = {
        "rank": 4, "alpha": 8.0, "base": "tiny", "base_fingerprint": FINGERPRINT, "layout": panel_layout("1x3"),
        "marker": "[STYLES]", "caption": "[STYLES] {}",
    }
    return AdapterCard(**(given_ | changes))


def test_an_adapter_comes_back_as_it_was_saved() -> None:
    save_adapter(adapters_folder() / "styles.safetensors", pairs(), card())
    assert adapter_names() == ["styles"]
    found = find_adapter("styles")
    assert found.card == card()
    assert (found.num_modules, found.card.scale) == (2, 2.0)
    adapter = load_adapter(found, network(), "tiny", FINGERPRINT)
    assert adapter.loras.keys() == pairs().keys()
    for path, (down, up) in pairs().items():
        lora = adapter.loras[path]
        assert torch.equal(lora.down_rI, down)
        assert torch.equal(lora.up_Or, up)
        torch.testing.assert_close(lora.delta(), 2 * up.float() @ down.float())


def test_another_base_is_refused_with_both_fingerprints() -> None:
    save_adapter(adapters_folder() / "styles.safetensors", pairs(), card())
    said = rf"'styles'; it was trained on tiny with .* {FINGERPRINT}, and other has fingerprint {'f' * 16}\.$"
    with pytest.raises(ValueError, match=said):
        load_adapter(find_adapter("styles"), network(), "other", "f" * 16)


def test_an_adapter_whose_modules_do_not_fit_is_refused() -> None:
    other = {"blocks.7.attn.qkv": pairs()["blocks.0.attn.qkv"]}
    save_adapter(adapters_folder() / "styles.safetensors", other, card())
    with pytest.raises(ValueError, match=r"changes blocks\.7\.attn\.qkv"):
        load_adapter(find_adapter("styles"), network(), "tiny", FINGERPRINT)


def test_a_rank_that_the_matrices_have_not_is_refused() -> None:
    save_adapter(adapters_folder() / "styles.safetensors", pairs(), card(rank=1))
    with pytest.raises(AdapterFileError, match=r"says that its rank is 1, and has matrices of rank 4\.$"):
        load_adapter(find_adapter("styles"), network(), "tiny", FINGERPRINT)


@pytest.mark.parametrize("name", ["../x", "", "A", "a/b", "a.safetensors", "-a", "a" * 65, "a\n"])
def test_names_that_are_paths_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name has lower-case letters"):
        find_adapter(name)


@pytest.mark.parametrize(
    "change",
    [
        {"rank": 0}, {"rank": 513}, {"rank": True}, {"rank": 4.0}, {"alpha": 0}, {"alpha": math.nan}, {"alpha": 1e9},
        {"alpha": "8"}, {"base_fingerprint": "xyz"}, {"base": "a\x1b[2J"}, {"caption": "x" * 4001}, {"marker": 3},
        {"layout": {"rows": 1}}, {"layout": {"rows": 1, "columns": 1, "markers": [3]}}, {"unknown": 1},
        {"layout": {"rows": 10**6, "columns": 10**6, "markers": ["[A]"]}}, {"layout": [1]},
    ],
)
def test_a_card_that_makes_no_sense_is_refused_by_its_file(change: dict[str, Any]) -> None:
    given_ = json.loads(card().to_header()["mezzotint"]) | change
    adapters_folder().mkdir()
    path = adapters_folder() / "bad.safetensors"
    path.write_bytes(save({f"{KEY}.lora_A.weight": torch.zeros(1, 1)}, metadata={"mezzotint": json.dumps(given_)}))
    with pytest.raises(AdapterFileError, match=r"bad\.safetensors has a header that cannot be used: ") as refused:
        find_adapter("bad")
    assert one_sentence(str(refused.value))


def one_sentence(text: str) -> bool:
    return text.isprintable() and text.endswith(".") and len(text) < 700


def outcome(path: Path) -> str:
    """Why a file is refused; empty for one that is read, whose values are all finite."""
    try:
        found = pairs_of(read_adapter_tensors(path)[1], path)
    except AdapterFileError as refused:
        return str(refused)
    assert all(bool(half.isfinite().all()) for pair in found.values() for half in pair)
    return ""


def file_of(entries: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 10**6)
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "is not safetensors"),
    "a pickle": (pickle.dumps({"a": [1] * 99}), "not safetensors but a pickle"),
    "a zip bomb": (zipped(), "not safetensors but a zip archive"),
    "a header as long as memory": (file_of(b"{}", length=2**62), "a header of 4,611,686,018,427,387,904 bytes"),
    "a header over the limit": (
        file_of({"a" * 10: entry(), "__metadata__": {"x": "y" * MAX_HEADER_BYTES}}, b"\0" * 8), "at most 2,097,152"
    ),
    "cut within its header": (file_of({"a": entry()})[:30], "ends within its header"),
    "cut within its tensors": (file_of({"a": entry()}, b"\0" * 7), "was cut or added to"),
    "something behind its tensors": (file_of({"a": entry()}, b"\0" * 9), "was cut or added to"),
    "no JSON": (file_of(b"{nothing}"), "header that is not JSON"),
    "no text": (file_of(b"{\xff\xfe}"), "header that is not JSON"),
    "JSON as deep as the stack": (file_of(b'{"a":' + b"[" * 100_000), "header that is not JSON"),
    "a name twice": (file_of(b'{"a":1,"a":1}'), "a key is there twice"),
    "not a number": (file_of(b'{"a":NaN}'), "NaN is no JSON"),
    "no tensors": (file_of({}), "holds 0 tensors"),
    "thousands of tensors": (file_of({f"a{i}": 1 for i in range(8193)}), "holds 8,193 tensors"),
    "integers": (file_of({"a": entry("I64", (1,))}, b"\0" * 8), "of dtype I64; it must be F32, F16, BF16"),
    "a dtype that is none": (file_of({"a": entry(["F32"])}, b"\0" * 8), "dtype ['F32']"),
    "a path for a name": (file_of({"../../etc/passwd": entry()}, b"\0" * 8), "a name is letters"),
    "an escape in a name": (file_of({"\x1b[2J": entry()}, b"\0" * 8), "holds a tensor '?[2J'"),
    "a name without an end": (file_of({"a" * 9999: entry()}, b"\0" * 8), "at most 200"),
    "no entry": (file_of({"a": 7}), "something else than dtype"),
    "too much of an entry": (file_of({"a": entry(code="x")}, b"\0" * 8), "something else than dtype"),
    "a side below nothing": (file_of({"a": entry(shape=(-2,))}, b"\0" * 8), "of shape [-2]"),
    "a side of nothing": (file_of({"a": entry(shape=(0,), offsets=(0, 0))}), "of shape [0]"),
    "a side that is true": (file_of({"a": entry(shape=(True, 2))}, b"\0" * 8), "of shape [True, 2]"),
    "a fraction of a side": (file_of({"a": entry(shape=(2.0,))}, b"\0" * 8), "of shape [2.0]"),
    "many sides": (file_of({"a": entry(shape=(1,) * 9 + (2,))}, b"\0" * 8), "at most 2 sides"),
    "sides beyond all numbers": (file_of({"a": entry(shape=(2**62, 2**62))}, b"\0" * 8), "of shape"),
    "offsets that lie": (file_of({"a": entry(offsets=(0, 4))}, b"\0" * 4), "not as long as its shape"),
    "offsets before the file": (file_of({"a": entry(offsets=(-8, 0))}), "at byte"),
    "one tensor on another": (file_of({"a": entry(), "b": entry()}, b"\0" * 8), "follow each other"),
    "a gap": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "follow each other"),
    "metadata that are no texts": (file_of({"__metadata__": {"a": 1}, "a": entry()}, b"\0" * 8), "metadata"),
    "a value that is none": (file_of({"a": entry()}, b"\0\0\xc0\x7f" * 2), "not finite in a"),
    "an infinite value": (file_of({"a": entry("F16", (4,))}, b"\0\x7c" * 4), "not finite in a"),
}


@pytest.mark.parametrize("kind", list(HOSTILE))
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    raw, said = HOSTILE[kind]
    path = tmp_path / "theirs.safetensors"
    path.write_bytes(raw)
    with pytest.raises(AdapterFileError) as refused:
        read_adapter_tensors(path)
    assert said in str(refused.value)
    assert str(refused.value).startswith(str(path))
    assert one_sentence(str(refused.value))


def test_what_is_no_plain_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for path, said in (
        (tmp_path / "pipe.safetensors", "is no plain file"), (tmp_path, "is no plain file"),
        (Path("/dev/zero"), "is no plain file"), (tmp_path / "none", "cannot be read"),
    ):
        with pytest.raises(AdapterFileError, match=said):
            read_header(path)


def test_a_file_over_the_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.truncate(2**31 + 1)
    with pytest.raises(AdapterFileError, match="has 2,147,483,649 bytes; at most"):
        read_header(path)


GOOD = save({f"{KEY}.lora_A.weight": torch.ones(2, 3), f"{KEY}.lora_B.weight": torch.ones(4, 2).bfloat16()})


@given(
    place=st.integers(0, len(GOOD) - 1), junk=st.binary(max_size=12), cut=st.integers(0, 12),
)
def test_a_file_with_other_bytes_is_read_or_refused_and_nothing_else(place: int, junk: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(GOOD[:place] + junk + GOOD[place + cut :])
        said = outcome(path)
        assert not said or one_sentence(said)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "BF16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.text(max_size=3) | st.sampled_from(["dtype", "shape", "data_offsets", "__metadata__"]), inner, max_size=4
    ),
    max_leaves=12,
)
likely = st.fixed_dictionaries({
    "dtype": st.sampled_from(["F32", "F16", "I8", 3]), "shape": st.lists(st.integers(-1, 4), max_size=3),
    "data_offsets": st.lists(st.integers(-1, 64), max_size=3),
})
keys = st.text(max_size=4) | st.sampled_from(["__metadata__", f"{KEY}.lora_A.weight", f"{KEY}.lora_B.weight"])


@given(header=st.dictionaries(keys, json_values | likely, max_size=3), data=st.binary(max_size=64))
def test_any_header_is_read_or_refused_and_nothing_else(header: dict[str, Any], data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.safetensors"
        path.write_bytes(file_of(header, data))
        said = outcome(path)
        assert not said or one_sentence(said)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({f"{KEY}.lora_A.weight": (2, 3)}, "holds only"),
        ({f"{KEY}.lora_A.weight": (2, 3), f"{KEY}.lora_B.weight": (4, 3)}, "same rank"),
        ({f"{KEY}.lora_A.weight": (2,), f"{KEY}.lora_B.weight": (4, 2)}, "same rank"),
        ({f"{KEY}.lora_A.weight": (600, 3), f"{KEY}.lora_B.weight": (4, 600)}, "at most 512"),
        ({"blocks.0.lora_A.weight": (2, 3)}, "no matrix of an adapter"),
        ({f"{KEY}.weight": (2, 3)}, "no matrix of an adapter"),
    ],
)
def test_tensors_that_are_no_adapter_are_refused(tensors: dict[str, tuple[int, ...]], said: str) -> None:
    made = {key: torch.zeros(*shape) for key, shape in tensors.items()}
    with pytest.raises(AdapterFileError, match=said):
        pairs_of(made, Path("theirs.safetensors"))
