"""The embedded text encoder, against sentence-transformers' own use of the same weights."""

import pytest
import torch

from mezzotint.sampling.text import TextEncoder, _embedded_folder

PROMPTS = ["red apple", "a woman firefighter: dark skin tone", "flag: France", "", "word " * 300]


@pytest.fixture(scope="module")
def encoder() -> TextEncoder:
    return TextEncoder()


def test_the_pooled_vector_is_the_sentence_embedding(encoder: TextEncoder) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="the reference is not installed")
    reference = sentence_transformers.SentenceTransformer(str(_embedded_folder()), device="cpu")
    expected = torch.as_tensor(reference.encode(PROMPTS[:3]))
    pooled = encoder.encode(PROMPTS[:3], 12).pooled
    torch.testing.assert_close(torch.nn.functional.normalize(pooled, dim=1), expected, atol=1e-5, rtol=1e-4)


def test_many_prompts_encode_as_each_alone(encoder: TextEncoder) -> None:
    many = encoder.encode_many(PROMPTS, 12, batch_size=2)
    alone = encoder.encode(PROMPTS, 12)
    torch.testing.assert_close(many.tokens, alone.tokens, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(many.pooled, alone.pooled, atol=1e-5, rtol=1e-4)
    assert torch.equal(many.mask, alone.mask)
    assert many.lengths == alone.lengths


def test_no_prompt_is_zero_and_padding_is_zero(encoder: TextEncoder) -> None:
    encoded = encoder.encode(PROMPTS, 12)
    assert encoded.tokens.shape == (5, 12, 384)
    assert encoded.lengths == [4, 10, 5, 0, 256]
    assert encoded.tokens[3].abs().max() == 0
    assert encoded.pooled[3].abs().max() == 0
    assert not encoded.mask[3].any()
    assert encoded.tokens[0, 4:].abs().max() == 0
    assert (encoded.tokens[0, :4].norm(dim=1) > 1).all()
    assert encoded.mask.sum(dim=1).tolist() == [4, 10, 5, 0, 12]
