"""One sequence as the scheduler sees it. Pure; knows no token, no text and no frame."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Lane:
    """One sequence as the scheduler sees it: how many tokens it has, and how many positions have left in frames.

    Attention over one token is other arithmetic than over several. So that a lane that starts anew on another pipeline
    comes to the same bits, its prompt goes in the same chunks as before, and the answer in rows that are taken one by
    one.
    """

    id: int
    prompt: int
    length: int
    sent: int = 0
    slot: int = -1
    seat: int = -1
    """The slot that it must have, because its entries lie there."""
    whole: bool = False
    """Its next token takes the whole logits."""
    served: int = -1
    """The step in which it last had a row."""
    twice: bool = False
    """Its prompt's last position was computed a second time, alone."""
    again: bool = False
    """It starts anew, and that is still to be done."""
    kept: int = 0
    """Positions from the first on whose entries the stages from `kept_from` on hold."""
    kept_from: int = 0
    answered: bool = False
    """A row of it came back from this pipeline."""
    exact: int = 0
    """Positions from the first on that left in rows of several tokens: what any cut of the prompt makes of them."""

    @property
    def is_replayed(self) -> bool:
        """Whether tokens of its answer are computed again: the next ones are known."""
        return self.sent >= self.prompt and self.length - self.sent > 1

    def restart(self) -> None:
        """Another pipeline takes it over, which holds none of its positions."""
        self.sent, self.slot, self.served, self.exact = 0, -1, -1, 0
        self.seat, self.kept, self.kept_from = -1, 0, 0
        self.answered, self.again = False, self.twice

    def keep(self, seat: int, count: int, first: int) -> None:
        """The stages from `first` on hold the entries of the first `count` positions in a slot, as they were."""
        self.seat = seat
        self.kept, self.kept_from = min(count, self.length - 1), first
        if first == 0:
            self.sent, self.again = self.kept, self.again and self.kept < self.prompt

    def skipped_from(self, end: int) -> int:
        """The first stage that leaves out a row up to `end`; 0: none does."""
        return self.kept_from if end <= self.kept else 0

    def wants(self, end: int) -> bool:
        """Whether the token after position `end` − 1 is asked for."""
        return end == self.length and not self.again

    def moved(self, end: int) -> None:
        """The positions before `end` have left."""
        self.sent = end
        if self.again and end >= self.prompt:
            self.sent, self.again = self.prompt - 1, False

    def made(self, start: int, count: int, *, one_by_one: bool = False) -> None:
        """These positions left in one row."""
        if count == 1 or one_by_one:
            self.exact = min(self.exact, start)
        elif start <= self.exact:
            self.exact = max(self.exact, start + count)

    def ask_again(self) -> None:
        """The answer did not decide: the last position is computed once more, for whole logits."""
        self.sent, self.whole = self.length - 1, True
        self.twice |= self.sent < self.prompt
