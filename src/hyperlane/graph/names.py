"""Names of a stage graph's inputs and outputs: what the engine binds."""

from __future__ import annotations

TOKENS = "tokens"
"""int32 [batch, tokens]: token ids of a first stage."""

HIDDEN_IN = "hidden_in"
"""What the stage before sent: [batch, tokens, hidden] of the stream's type, or uint8 [batch, tokens, token bytes]."""

HIDDEN_OUT = "hidden_out"
"""What goes to the next stage, in the same way."""

LENGTHS = "lengths"
"""int32 [batch]: position of each row's last token, which is one less than its KV length after the run.

Where tokens are taken one by one: int32 [tokens], the position of each.
"""

TOTAL = "total"
"""int32 scalar: the longest KV length after the run."""

WANTED = "wanted"
"""int64 [wanted]: which tokens, counted over batch and tokens, the last stage projects."""

INVERSE_TEMPERATURE = "inverse_temperature"
"""float32 [wanted, 1]: 1 / temperature of each wanted token."""

TOP_K = "top_k"
"""int64 [1]: how many of the largest logits are asked for."""

PART_K = "part_k"
"""int64 [1]: how many of them are looked for in each part of the vocabulary, where it is taken apart."""

EXTRA = "extra"
"""int64 [extra]: indices into the flattened logits [wanted · vocab] that are asked for besides."""

LOGITS = "logits"
"""float32 [wanted, vocab]."""

TOP_LOGITS = "top_logits"
"""float32 [wanted, top_k], descending."""

TOP_IDS = "top_ids"
"""int32 [wanted, top_k]."""

LSE = "lse"
"""float32 [wanted, 1]: log-sum-exp of the logits."""

LSE_T = "lse_t"
"""float32 [wanted, 1]: log-sum-exp of logits / temperature."""

EXTRA_LOGITS = "extra_logits"
"""float32 [extra]."""


KV = ("key", "value")


def past(layer: int, kv: str) -> str:
    """Input: a layer's KV entries, [batch, kv_heads, positions, head_dim]; `kv` is key or value."""
    return f"past.{layer}.{kv}"


def present(layer: int, kv: str) -> str:
    """Output: the same after the run; bound to the same memory."""
    return f"present.{layer}.{kv}"


COUNTS = "counts"
"""int64 [2]: of a run's tokens, how many are decode rows' and how many the prompt's beside them."""

BESIDE_LENGTHS = "beside_lengths"
"""int32 [1]: as `LENGTHS`, of the prompt."""

BESIDE_TOTAL = "beside_total"
"""int32 scalar: as `TOTAL`, of the prompt."""


def beside(name: str) -> str:
    """Input or output: the prompt's KV entries, where `name` is that of the decode rows'."""
    return f"beside.{name}"


def passing(layer: int, kv: str, token: int) -> str:
    """Output: as `present`, after a token of a row that is taken one by one; after its last there is `present`."""
    return f"passing.{layer}.{kv}.{token}"
