"""Which tokens' logits a request's penalties and biases change, and to what. Pure; knows no frame."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        return self.adjusted({token: logit})[0]

    def adjusted(self, logits: Mapping[int, float]) -> list[float]:
        """The logits after penalties and bias, in the mapping's order."""
        counts, prompt, bias, repetition = self._counts, self._prompt, self._bias, self._repetition
        presence, frequency = self._per_token
        out = []
        for token, logit in logits.items():
            count = counts.get(token, 0)
            value = logit
            if repetition != 1.0 and (count or token in prompt):
                value = value / repetition if value > 0.0 else value * repetition
            if count:
                value -= presence + frequency * count
            out.append(value + bias.get(token, 0.0) if bias else value)
        return out
