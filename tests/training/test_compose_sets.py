"""Sets are the same each time, keep held-out subjects apart, and show on each panel what its caption says."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mezzotint.sampling.panel_captions import panel_texts
from mezzotint.sampling.panel_pictures import split
from mezzotint.sampling.panels import Canvas
from mezzotint.training.compose_sets import compose_sets
from mezzotint.training.emoji_captions import Emoji
from mezzotint.training.npm_archive import SourceError
from mezzotint.training.set_plans import HOURS, MOONS, TASKS, TONES, SetPlan, choose

SUBJECTS = [f"thing {i}" for i in range(8)]


def emoji(label: str, code_point: str, base_label: str | None = None, tone: int = 0) -> Emoji:
    return Emoji(code_point=code_point, label=label, base_label=base_label or label, group="", subgroup="", tone=tone,
                 tags=(), takes_article=True)


def colour_of(style: str, code_point: str) -> tuple[int, int, int]:
    """Each picture is of one colour, which tells it from all others."""
    return (200 if style == "fluent" else 100, int(code_point, 16) % 256, int(code_point, 16) // 256 % 256)


def picture(style: str, code_point: str, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour_of(style, code_point)).save(buffer, format=kind, lossless=True)
    return buffer.getvalue()


def pack(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def sources(tmp_path: Path, fake_npm: Callable[[str], None]) -> Path:
    """Archives of eight subjects behind a stand-in for npm. Noto has no picture of the last one."""
    code_points = {label: f"{0x1F300 + i:x}" for i, label in enumerate(SUBJECTS)}
    data = [{"label": label, "hexcode": code.upper(), "order": i, "group": 1, "subgroup": 0, "tags": []}
            for i, (label, code) in enumerate(code_points.items())]
    messages = {"groups": [{"order": 1, "message": "people"}], "subgroups": [{"order": 0, "message": "all"}]}
    pack(tmp_path / "names.tgz", {"package/en/data.json": json.dumps(data).encode(),
                                  "package/en/messages.json": json.dumps(messages).encode()})
    pack(tmp_path / "fluent.tgz", {f"package/assets/{code}.webp": picture("fluent", code, "WEBP")
                                   for code in code_points.values()})
    drawn = list(code_points.values())[:-1]
    pack(tmp_path / "noto.tgz", {f"package/img/google/64/{code}.png": picture("noto", code, "PNG") for code in drawn}
         | {f"package/img/google/32/{code}.png": b"" for code in drawn})
    fake_npm(f'case "$PACKAGE" in *fluent*) cp {tmp_path}/fluent.tgz "$DEST";; *google*) cp {tmp_path}/noto.tgz "$DEST"'
             f';; *) cp {tmp_path}/names.tgz "$DEST";; esac')
    return tmp_path / "sources"


def test_a_set_shows_what_its_caption_says_and_held_out_subjects_are_others(tmp_path: Path, sources: Path) -> None:
    counts = compose_sets("styles", tmp_path / "out", sources, num_sets=4, num_held_out=3, panel_size=32)
    facts = json.loads((tmp_path / "out" / "sets.json").read_text())
    assert counts == {"train": 4, "held_out": 3}
    assert sorted(facts["train"] + facts["held_out"]) == SUBJECTS[:-1]
    assert [source["licence"].split(",")[0] for source in facts["sources"]] == ["MIT", "Apache-2.0"]
    layout = TASKS["styles"].layout
    for folder, subjects in (("train", facts["train"]), ("held-out", facts["held_out"])):
        files = sorted(path.name for path in (tmp_path / "out" / folder).iterdir())
        assert files == sorted(f"{i:04d}.{end}" for i in range(len(subjects)) for end in ("png", "txt"))
        for i, subject in enumerate(subjects):
            image = Image.open(tmp_path / "out" / folder / f"{i:04d}.png")
            panels = split(Canvas(layout=layout, panel_width=32, panel_height=32), image)
            code = f"{0x1F300 + SUBJECTS.index(subject):x}"
            assert [panel.getpixel((9, 9)) for panel in panels] == [colour_of(s, code) for s in ("fluent", "noto")]
            summary, texts = panel_texts((tmp_path / "out" / folder / f"{i:04d}.txt").read_text(), layout)
            assert summary == f"[TWO-STYLES] a {subject} in two styles"
            assert texts == (f"a 3D picture of a {subject}", f"a flat drawing of a {subject}")


def test_the_same_again_to_the_byte(tmp_path: Path, sources: Path) -> None:
    for name in ("one", "two"):
        compose_sets("styles", tmp_path / name, sources, num_sets=4, num_held_out=2, panel_size=16)
    made = [{str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
            for name in ("one", "two")]
    assert len(made[0]) == 13
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"task": "cats"}, "task is 'cats'; it must be one of styles, tones, sequences"),
        ({"panel_size": 4}, "panel_size is 4"),
        ({"num_sets": 0}, "sets is 0"),
        ({"num_held_out": -1}, "held_out is -1"),
        ({"num_sets": 6}, "sets is 6 and held_out 2; there are 7 subjects"),
    ],
)
def test_arguments_that_cannot_be_used_leave_nothing(
    tmp_path: Path, sources: Path, change: dict[str, object], said: str
) -> None:
    given_: dict[str, object] = {"task": "styles", "num_sets": 2, "num_held_out": 2, "panel_size": 16}
    with pytest.raises(ValueError, match=said):
        compose_sets(output=tmp_path / "out", sources=sources, **(given_ | change))  # type: ignore[arg-type]
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path, sources: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="it is there already"):
        compose_sets("styles", tmp_path / "out", sources, num_sets=2, num_held_out=1, panel_size=16)


def test_without_npm_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="npm is not on PATH"):
        compose_sets("tones", tmp_path / "out", tmp_path / "sources", num_sets=2, num_held_out=1, panel_size=16)


def test_tones_go_from_light_to_dark_and_need_all_three() -> None:
    people = [emoji("waving hand", "a")]
    people += [emoji(f"waving hand: {name} skin tone", f"a{tone}", "waving hand", tone) for tone, name in TONES.items()]
    people += [emoji(f"baby: {TONES[t]} skin tone", f"b{t}", "baby", t) for t in (1, 4)]
    people += [emoji(f"couple: {n} skin tone, dark skin tone", f"c{t}", "couple", t) for t, n in TONES.items()]
    (plan,) = TASKS["tones"].plans(people[::-1])
    assert plan.subject == "waving hand"
    assert plan.panels == tuple(("fluent", f"a{tone}") for tone in TONES)
    assert panel_texts(plan.caption, TASKS["tones"].layout)[1][0] == "waving hand: light skin tone"


def test_sequences_follow_each_other_round_the_clock() -> None:
    labels = [f"{hour} o’clock" for hour in HOURS] + [f"{hour}-thirty" for hour in HOURS] + list(MOONS)
    plans = TASKS["sequences"].plans([emoji(label, label) for label in labels])
    assert len(plans) == len({plan.panels for plan in plans}) == 12 + 12 + 24 + 8
    shown = {plan.subject: [code for _, code in plan.panels] for plan in plans}
    assert shown["clock faces an hour apart from eleven o’clock"] == [
        "eleven o’clock", "twelve o’clock", "one o’clock", "two o’clock"
    ]
    assert shown["clock faces half an hour apart from eleven-thirty"][:2] == ["eleven-thirty", "twelve o’clock"]
    assert shown["phases of the moon from waning crescent moon"][1] == "new moon"
    assert TASKS["sequences"].plans([emoji("new moon", "1")]) == []


@given(num_sets=st.integers(1, 20), held_out=st.integers(0, 10), seed=st.integers(0, 5))
def test_held_out_subjects_do_not_change_with_the_number_of_sets(num_sets: int, held_out: int, seed: int) -> None:
    plans = [SetPlan(subject=f"s{i % 30}", panels=(("fluent", str(i)),), caption="") for i in range(33)]
    train, kept = choose(plans, num_sets, held_out, seed)
    assert (len(train), len(kept)) == (num_sets, held_out)
    assert len({plan.subject for plan in train + kept}) == num_sets + held_out
    assert [p.subject for p in choose(plans, 1, held_out, seed)[1]] == [plan.subject for plan in kept]
