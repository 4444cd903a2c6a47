"""`segue codec train`, `segue codec refine` and `segue codec measure`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from segue.cli.data_options import Column, Encoding, FollowLinks, Root, Source, source_of
from segue.cli.options import ContinueOut, Device, Extra, SkipBad, Steps, Threads, check_rate
from segue.data.reading import DataSource


def train(
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the codec, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Length of training in minutes, over all resumes.")] = 60.0,
    steps: Steps = None,
    rate: Annotated[int, typer.Option(help="Sample rate in Hz that sounds are resampled to.")] = 16000,
    channels: Annotated[int, typer.Option(help="1 for a mono codec, 2 for a stereo one.")] = 1,
    latent_channels: Annotated[
        int | None, typer.Option(help="Number of latent channels.", show_default="32, or 64 for a stereo codec")
    ] = None,
    kl_weight: Annotated[
        float, typer.Option(help="Weight of the KL loss; a higher weight gives smoother latents.")
    ] = 0.005,
    mask_share: Annotated[
        float, typer.Option(help="Share of crops that are decoded without a random span of latent channels (0 to 1).")
    ] = 0.0,
    consistency_weight: Annotated[
        float,
        typer.Option(
            help="Weight of the loss that keeps all but the first two latent channels the same at any loudness."
        ),
    ] = 0.0,
    extra: Extra = None,
    resume: ContinueOut = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and draws.")] = 0,
    threads: Threads = 0,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
) -> None:
    """Train a codec on your own sounds. Other commands then take its folder: --codec DIR."""
    from segue.cli.options import finite, use_threads
    from segue.codecs.autoencoder import AutoencoderConfig
    from segue.codecs.mid_side import GIVEN, MidSideConfig
    from segue.devices import announced_device
    from segue.training.codec import config_for, train_codec
    from segue.types import UserError

    finite("--steps", steps, 1)
    finite("--kl-weight", kl_weight, 0.0)
    finite("--mask-share", mask_share, 0.0, 1.0)
    finite("--consistency-weight", consistency_weight, 0.0)
    use_threads(threads)
    # Options are checked before the sounds are read, which may take minutes.
    check_rate(rate)
    if channels not in (1, 2):
        raise UserError(f"--channels {channels}; hint: give 1 (mono) or 2 (stereo), or --latent-channels {channels}")
    fewest = 1 if channels == 1 else GIVEN + 1
    if latent_channels is not None and latent_channels < fewest:
        raise UserError(f"--latent-channels {latent_channels}; hint: give {fewest} or more")
    shapes: type[AutoencoderConfig] | type[MidSideConfig] = AutoencoderConfig if channels == 1 else MidSideConfig
    model = shapes.for_rate(rate, **({} if latent_channels is None else {"channels": latent_channels}))
    config = config_for(
        model, minutes=minutes, steps=steps, kl_weight=kl_weight, mask_share=mask_share,
        consistency_weight=consistency_weight, seed=seed,
    )  # fmt: skip
    data = source_of(source, root, follow_links, column, encoding)
    place = announced_device(device)
    codec = train_codec(data, out, config, extra=tuple(extra or ()), resume=resume, skip_bad=skip_bad, device=place)
    _report(out / "report.html", "A trained codec", {"codec": codec}, data, skip_bad=skip_bad)
    typer.echo(f"codec in {out}; next: segue encode SOURCE --out CACHE --codec {out}")


def refine(
    codec: Annotated[str, typer.Argument(help="Folder that `segue codec train` wrote, or name of a codec.")],
    source: Source,
    out: Annotated[Path, typer.Option(help="Folder for the refined codec, its training state and its log.")],
    minutes: Annotated[float, typer.Option(help="Length of training in minutes, over all resumes.")] = 30.0,
    steps: Steps = None,
    adversarial_share: Annotated[
        float,
        typer.Option(
            help="Gradient norm of the adversarial loss, as a share of the reconstruction's (0 to 1); 0 leaves it out."
        ),
    ] = 0.2,
    extra: Extra = None,
    resume: ContinueOut = False,
    seed: Annotated[int, typer.Option(help="Seed of discriminators and draws.")] = 0,
    threads: Threads = 0,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
    device: Device = "auto",
) -> None:
    """Continue training a codec's decoder with an adversarial loss. Latents and caches of the codec stay valid."""
    from segue.cli.options import finite, use_threads
    from segue.codecs import load_codec
    from segue.codecs.autoencoder import AutoencoderCodec
    from segue.devices import announced_device
    from segue.training.codec.adversary import RefineConfig, origin_of, refine_codec
    from segue.types import UserError

    finite("--steps", steps, 1)
    finite("--adversarial-share", adversarial_share, 0.0, 1.0)
    use_threads(threads)
    place = announced_device(device)
    before = load_codec(codec)
    # Others have no decoder that could be trained apart from their latents.
    if not isinstance(before, AutoencoderCodec):
        raise UserError(f"{codec}: not an autoencoder codec of segue; hint: give a folder that segue codec train wrote")
    if before.audio_channels == 2:
        raise UserError(f"{codec}: a stereo codec, which refine does not take; hint: train it longer, with --resume")
    config = RefineConfig(minutes=minutes, steps=steps, adversarial_share=adversarial_share, seed=seed)
    data = source_of(source, root, follow_links, column, encoding)
    # Only the decoder changes, so the report shows both codecs on the same latents.
    after = refine_codec(
        before,
        data,
        out,
        config,
        origin=origin_of(codec),
        extra=tuple(extra or ()),
        resume=resume,
        skip_bad=skip_bad,
        device=place,
    )
    _report(out / "report.html", "A refined codec", {"before": before, "refined": after}, data, skip_bad=skip_bad)
    typer.echo(f"codec in {out}; its latents are those of {codec}: caches and models made with that stay valid")


def measure(
    codec: Annotated[str, typer.Argument(help="Name of a codec, or folder of a trained one.")],
    source: Source,
    clips: Annotated[int, typer.Option(help="Number of clips of each kind, at most.")] = 200,
    report: Annotated[Path | None, typer.Option(help="HTML file to write, with spectrograms and players.")] = None,
    root: Root = None,
    follow_links: FollowLinks = False,
    column: Column = None,
    encoding: Encoding = None,
    skip_bad: SkipBad = False,
) -> None:
    """Measure a codec on held-out sounds: reconstruction, robustness to latent noise, decoding speed; as JSON."""
    from segue.cli.options import finite
    from segue.codecs import load_codec

    finite("--clips", clips, 1)
    data = source_of(source, root, follow_links, column, encoding)
    _report(report, f"Codec {codec}", {"codec": load_codec(codec)}, data, clips=clips, skip_bad=skip_bad)


def _report(
    page: Path | None, title: str, codecs: dict, source: DataSource, clips: int = 200, skip_bad: bool = False
) -> None:
    """Print figures on held-out sounds of the last of the codecs as JSON; write a page on all of them, where asked."""
    from segue.report.codec_page import RoundTrip, write_codec_report
    from segue.training.codec.figures import measure_codec, round_trips

    figures = {label: measure_codec(codec, source, clips=clips, skip_bad=skip_bad) for label, codec in codecs.items()}
    # Of the last codec, the one that was trained or asked about.
    typer.echo(json.dumps(list(figures.values())[-1], indent=2))
    if page is None:
        return
    rate_hz = next(iter(codecs.values())).sample_rate_hz
    trips = [RoundTrip(*trip, rate_hz) for trip in round_trips(codecs, source, skip_bad=skip_bad)]
    write_codec_report(page, title, f"What comes back of held-out sounds of {source}", figures, trips)
    typer.echo(f"report: {page}")
