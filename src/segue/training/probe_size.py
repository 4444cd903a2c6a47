"""How much a run spends on its probe, where nobody says: a fiftieth of its work, and a short run some more."""

from __future__ import annotations

from dataclasses import replace

from segue.stage.condition_gain import CROSSED_FROM, GAIN_TIMES, OTHERS
from segue.stage.discrepancy import MOST_CLIPS, SMALLEST_PROBE, probes_in
from segue.training.config import RunConfig

SHARE = 0.02  # of a run's work
GAIN_SHARE = 0.005  # for the condition gain, whose line is quiet enough with few clips
MOST_SHARE = 0.05  # of the work between two probes, which therefore stand further apart in a short run
PREDICTION = 1 / 3  # of a training step's work: forward without backward
GAIN_CLIPS = (16, 32)  # fewest and most of the condition gain; more buy nothing (docs/method.md)


def settled_probe(config: RunConfig) -> RunConfig:
    """The config with `probe.space` "auto" and `probe.clips` 0 decided, by its own numbers alone.

    The space is "latent" for our own text-to-audio models, which are as small as the codec and the teacher that a probe
    of waveforms takes, and "waveform" for pretrained models and for super-resolution. Clips are as many as SHARE of the
    run's examples pays for, from SMALLEST_PROBE to MOST_CLIPS, or GAIN_SHARE within GAIN_CLIPS: a short run has a
    noisier probe. Where the fewest clips are still too many, probes stand further apart, by MOST_SHARE. Our definition.
    """
    probe = config.policy.probe
    if probe.space == "auto":
        small = config.train.task == "generation" and not config.model.pretrained
        probe = replace(probe, space="latent" if small else "waveform")
    if not probe.clips:
        share, asked, (fewest, most) = SHARE, len(probe.times), (SMALLEST_PROBE, MOST_CLIPS)
        if config.policy.probes_gain:
            captions = config.train.task == "generation"  # known bands are asked for again at every time
            asked = sum(1 if captions and t >= CROSSED_FROM else 1 + OTHERS for t in GAIN_TIMES)
            share, (fewest, most) = GAIN_SHARE, GAIN_CLIPS
        total = config.train.total_examples
        paid = share * total / (probes_in(probe, total) * asked * PREDICTION)
        clips = min(most, max(fewest, int(paid)))
        apart = probe.closest_examples or round(clips * asked * PREDICTION / MOST_SHARE)
        probe = replace(probe, clips=clips, closest_examples=apart)
    return replace(config, policy=replace(config.policy, probe=probe))
