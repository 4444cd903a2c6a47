"""The space that models work in: a codec's latents with mean 0 and standard deviation 1 over the training set."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor

from segue.codecs.base import Codec


class LatentSpace:
    """A codec and the scale of its latents, as one object: whoever has it can go to standardised latents and back.

    Attributes:
        mean, std: [C, 1] of the codec's latents over the training set.
    """

    def __init__(self, codec: Codec | Callable[[], Codec], mean: Tensor, std: Tensor) -> None:
        """
        Args:
            codec: or what loads it when it is first needed: training on cached latents may need none.
            mean, std: [C, 1].
        """
        self._codec = codec
        self.mean, self.std = mean, std

    @cached_property
    def codec(self) -> Codec:
        """The codec, on the statistics' device."""
        codec = self._codec if isinstance(self._codec, Codec) else self._codec()
        return codec.to(self.mean.device)

    def encode(self, wave: Tensor, mask: Tensor | None = None) -> Tensor:
        """Waveforms [B, A, T] -> standardised latents [B, C, L]; mask [B, L] bool, True where a frame is real."""
        return self.standardise(self.codec.encode(wave), mask)

    def decode(self, x_0: Tensor, samples: int) -> Tensor:
        """Standardised latents [B, C, L] -> waveforms [B, A, samples]."""
        return self.codec.decode(x_0 * self.std + self.mean, samples)

    def standardise(self, latents: Tensor, mask: Tensor | None = None) -> Tensor:
        """The codec's latents [B, C, L], standardised; padding becomes exactly 0.

        Args:
            latents: as `codec.encode` gives them and caches hold them.
            mask: [B, L] bool, True where a frame is real; None where all are.
        """
        x_0 = (latents - self.mean) / self.std
        # Zero, exactly: padding must look the same whatever the statistics are.
        return x_0 if mask is None else x_0 * mask[:, None]

    def scaled(self, mean: Tensor, std: Tensor) -> LatentSpace:
        """The same codec's latents under other statistics."""
        return LatentSpace(lambda: self.codec, mean, std)
