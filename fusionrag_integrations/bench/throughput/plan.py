"""What a run measures."""

from __future__ import annotations

from dataclasses import dataclass

from fusionrag_integrations.errors import InvalidInputError


@dataclass(frozen=True, slots=True)
class Plan:
    """Which systems under which loads, over what prompts.

    ratios: of the engine's recomputed tokens. clients: of each closed loop. shares: of each
    system's own peak, at which requests arrive in open loops. requests: under each load; a closed
    loop has at least two for each client. chunks: how many prompts are made of; prompt_tokens: the
    longest prompt; output_tokens: of every answer. exponent: of Zipf's law, by which chunks are
    drawn; 0 draws them evenly. rounds: in which all of it is measured.

    Raises `InvalidInputError` for less than nothing of anything, and where there is nothing.
    """

    ratios: tuple[float, ...] = (0.0, 0.05, 0.15)
    clients: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    requests: int = 48
    chunks: int = 200
    prompt_tokens: int = 2000
    output_tokens: int = 32
    exponent: float = 0.8
    rounds: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.requests, self.chunks, self.prompt_tokens, self.output_tokens, self.rounds)
        if not self.ratios or not self.clients or min(*numbers, *self.clients) < 1:
            raise InvalidInputError(
                f"{self} asks for nothing somewhere; give a ratio and a number of clients at "
                "least, and 1 or more of everything that is counted."
            )
        if min(self.shares, default=1.0) <= 0.0 or self.exponent < 0.0:
            raise InvalidInputError(
                f"shares are {self.shares} and the exponent is {self.exponent}; give shares above "
                "0, and an exponent of 0 or more."
            )

    @property
    def most_clients(self) -> int:
        """Those of the fullest closed loop."""
        return max(self.clients)

    def requests_of(self, clients: int) -> int:
        """How many requests a closed loop answers."""
        return max(self.requests, 2 * clients)
