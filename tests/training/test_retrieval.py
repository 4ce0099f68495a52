import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mezzotint.training.retrieval import nearest_labels, score

GALLERY = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.5, 0.5], [0.2, 0.8], [0.0, 1.0]])
LABELS = ["apple", "apple", "pear", "plum", "fig", "kiwi"]


def test_labels_are_ranked_by_angle_and_each_counts_once() -> None:
    ranked = nearest_labels(torch.tensor([[1.0, 0.0]]), GALLERY, LABELS)
    assert ranked == [["apple", "pear", "plum", "fig", "kiwi"]]


def test_many_pictures_of_one_label_do_not_push_the_fifth_label_out() -> None:
    gallery = torch.tensor([[1.0, n / 100] for n in range(20)] + [[1.0, 1.0 + n] for n in range(5)])
    labels = ["crowd"] * 20 + ["a", "b", "c", "wanted", "too far"]
    (ranked,) = nearest_labels(torch.tensor([[1.0, 0.0]]), gallery, labels)
    assert ranked == ["crowd", "a", "b", "c", "wanted"]
    assert score([ranked], ["wanted"]).top5 == 1
    assert score([ranked], ["too far"]).top5 == 0


def test_the_length_of_a_feature_does_not_matter() -> None:
    question = torch.tensor([[0.3, 0.7]])
    far = nearest_labels(question, GALLERY * torch.tensor([[9.0], [1], [0.1], [5], [0.01], [100]]), LABELS)
    assert far == nearest_labels(question * 50, GALLERY, LABELS)
    assert far[0][0] == "fig"


def test_of_two_pictures_at_one_distance_the_earlier_comes_first() -> None:
    gallery = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    ranked = nearest_labels(torch.tensor([[1.0, 0.0]]), gallery, ["last", "first", "second", "third"])
    assert ranked == [["first", "second", "third", "last"]]


def test_scores_are_fractions_of_all_pictures() -> None:
    ranked = [list("abcde"), list("abcde"), list("bacde"), list("efghi")]
    result = score(ranked, ["a", "b", "b", "a"])
    assert result.top1 == 2 / 4
    assert result.top5 == 3 / 4


FIVE_LABELS = st.lists(st.sampled_from("abcdefgh"), min_size=5, max_size=5, unique=True)


@given(st.lists(st.tuples(FIVE_LABELS, st.sampled_from("abcdefgh")), min_size=1))
def test_top5_is_never_below_top1_and_both_lie_between_0_and_1(pairs: list[tuple[list[str], str]]) -> None:
    result = score([ranked for ranked, _ in pairs], [wanted for _, wanted in pairs])
    assert 0 <= result.top1 <= result.top5 <= 1


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted is empty"):
        score([], [])
    with pytest.raises(ValueError, match="2 texts for 6 pictures"):
        nearest_labels(torch.ones(1, 2), GALLERY, ["a", "b"])
