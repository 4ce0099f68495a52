"""How many tokens an expert takes, and what experts cost in floating-point operations. Pure arithmetic."""


def tokens_per_expert(capacity: float, num_experts: int, num_tokens: int) -> int:
    """Tokens of one picture that an expert takes: capacity is how many experts a token has on average."""
    return min(num_tokens, max(1, int(capacity * num_tokens / num_experts)))


def expert_flops(
    hidden_size: int, mlp_size: int, num_experts: int, capacity: float, num_tokens: int, num_positions: int
) -> int:
    """FLOPs of experts on one picture: the gate's scores of all positions (padding of tiles included), and the two
    matrices of each expert on its tokens."""
    chosen = num_experts * tokens_per_expert(capacity, num_experts, num_tokens)
    return 2 * num_positions * hidden_size * num_experts + 2 * chosen * 2 * hidden_size * mlp_size
