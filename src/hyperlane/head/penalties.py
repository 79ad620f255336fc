"""Which tokens' logits a request's penalties and biases change, and to what. Pure; knows no frame."""

from __future__ import annotations

from collections.abc import Sequence

from hyperlane.core import SamplingParams


class History:
    """The tokens of one sequence, as far as its penalties and biases care.

    Definitions (those of vLLM and of the OpenAI API): the repetition penalty r counts prompt and answer, a logit
    above 0 is divided by r and another one multiplied; then `presence_penalty` once and `frequency_penalty` for each
    occurrence in the answer are subtracted; then the bias is added. (llama.cpp counts a window of the last tokens.)
    """

    __slots__ = (
        "_bias",
        "_counts",
        "_penalises",
        "_per_token",
        "_prompt",
        "_repetition",
        "_touched",
        "lowers",
    )

    def __init__(self, params: SamplingParams, prompt: Sequence[int] = ()) -> None:
        self._bias = dict(params.logit_bias)
        self._repetition = params.repetition_penalty
        self._per_token = (params.presence_penalty, params.frequency_penalty)
        self._prompt = frozenset(prompt) if self._repetition != 1.0 else frozenset()
        self._counts: dict[int, int] = {}
        self._penalises = self._repetition != 1.0 or self._per_token != (0.0, 0.0)
        self._touched = tuple(dict.fromkeys([*self._bias, *sorted(self._prompt)]))
        self.lowers = (
            self._repetition >= 1.0 and min(self._per_token) >= 0.0 and all(bias <= 0.0 for bias in self._bias.values())
        )
        """Whether no logit is ever raised."""

    @property
    def touched(self) -> tuple[int, ...]:
        """The distinct tokens whose logits are not the model's own."""
        return self._touched

    def add(self, token: int) -> None:
        """Note a token of the answer."""
        if not self._penalises:
            return
        seen = self._counts.get(token, 0)
        self._counts[token] = seen + 1
        if not seen and token not in self._bias and token not in self._prompt:
            self._touched = (*self._touched, token)

    def adjust(self, token: int, logit: float) -> float:
        """The logit after penalties and bias."""
        count = self._counts.get(token, 0)
        if self._repetition != 1.0 and (count or token in self._prompt):
            logit = logit / self._repetition if logit > 0.0 else logit * self._repetition
        if count:
            presence, frequency = self._per_token
            logit -= presence + frequency * count
        return logit + self._bias.get(token, 0.0)
