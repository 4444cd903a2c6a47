"""Which model upsamples: a run's, a predictor of one's own, or one that comes with the package."""

from __future__ import annotations

from segue.types import UserError
from segue.upsampling.enhance import Resolver

DEFAULT_RATE_HZ = 16_000  # of the output, where nobody says
WIDEST_HZ = 48_000  # that a shipped model makes


def load_resolver(
    run: str, weights: str = "ema", device: str = "cpu", steps: int | None = None, rate_hz: int | None = None
) -> Resolver:
    """The model of `run`, on a device.

    'default' is one that comes with the package: a predictor, the shipped one of the lowest rate that reaches
    `rate_hz`, or with steps the diffusion model.

    Args:
        run: folder of a predictor or of a run, a checkpoint, a model.safetensors, or 'default'.
        weights: ema or model, of a diffusion model.
        steps: that it is going to be asked for; None: its own.
        rate_hz: of the output; None: 16,000.

    Raises:
        UserError: nothing to load there, or a model that does not work with so many steps.
    """
    # Imported here: the diffusion model takes a second to import, and the predictor needs nothing of it.
    from segue.predictor import Predictor
    from segue.predictor.files import predictor_file

    if run == "default" and not steps:
        return Predictor.load(None, device, rate_hz or DEFAULT_RATE_HZ)
    place = None if run == "default" else predictor_file(run)
    if place is not None:
        if steps:
            raise UserError(f"--steps {steps}: {run} is a predictor, which has no steps; hint: leave out --steps")
        return Predictor.load(place, device)
    from segue.pipeline import SuperResolver

    resolver = SuperResolver.load(None if run == "default" else run, weights, device)
    if run == "default" and (rate_hz or 0) > resolver.sample_rate_hz:
        raise UserError(
            f"--rate {rate_hz}: the shipped diffusion model makes {resolver.sample_rate_hz} Hz; hint: leave out "
            f"--steps: the shipped predictor makes up to {WIDEST_HZ} Hz"
        )
    if steps == 0:
        raise UserError(
            f"--steps 0: {run} is a diffusion model, which needs at least 1; hint: 'default' in its place, or "
            "the folder of a predictor"
        )
    return resolver
