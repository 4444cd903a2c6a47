"""The law of training times as a function of the regime (METHOD section 4 in docs/method.md; our definition)."""

from __future__ import annotations

from segue.process.timesteps import LogitNormal, Mixture


def stage_law(regime: float, floor: float = 0.5, mu_0: float = 0.8) -> Mixture:
    """p_r(t) = f U(0, 1) + (1 - f) LogitNormal(mu_0 (1 - 2 r), 1).

    r = 0 (semantic acquisition) leans to high noise, where only the caption can tell what the sound is; r = 1
    (refinement) leans to low noise. The uniform floor keeps every noise level in the diet.

    Args:
        regime: r in [0, 1].
        floor: f, share of the uniform law.
        mu_0: how far the log-normal part leans at the two ends.

    Raises:
        ValueError: regime outside [0, 1].
    """
    if not 0.0 <= regime <= 1.0:
        raise ValueError(f"regime is {regime}; it lies in [0, 1]")
    return Mixture(floor, LogitNormal(mu_0 * (1.0 - 2.0 * regime), 1.0))
