"""What a recording has been through beside losing its top: a telephone, a tape, an MP3; and what is done about it.

All of it is our definition, from the levels of the file in bands (audio/profile.py). Filters are zero-phase and smooth,
so that they look a few hundredths of a second around a sample, and chunks of a file get what the whole would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segue.audio.analyse import Analysis
from segue.audio.profile import Profile
from segue.audio.sound import Header

SOURCES = ("telephone", "mp3", "tape", "auto")
_TELEPHONE_SUBTYPES = ("ALAW", "ULAW", "GSM610", "G721_32", "G723_24", "G723_40", "VOX_ADPCM")
_MP3_FORMATS = ("MP3", "ADTS")
_MP3_SUBTYPES = ("MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
_BOOST_DB = 10.0  # most that the low edge of a telephone band is raised by; it raises the code's noise as well
_EDGE_DB = 12.0  # what lies so far below its neighbourhood is no longer the band
_HOLE_SHARE = 0.2  # of the frames; a band that is empty so often has been left out by its encoder
_HISS_DB = 12.0  # loud over quiet: a band of steady noise has 10, of sound with pauses 20 and more
_PAUSE_DB = 20.0
_KEPT_SHARE = 0.1  # of the power that the model would give: what has less is a hole
_KEPT_BINS = 8  # a hole is looked for in bands of 250 Hz, where frames have 32 ms
_LOW_HZ = 50.0  # the lowest that --low makes
_LOW_DB = 3.0  # of what --low makes against the octave above it; by LSD of speech (docs/super-resolution-files.md)
_MOST_LOW_GAIN = 2.0  # of what the rectifier makes
_LEVEL_SEC = 0.03


@dataclass(frozen=True)
class Treatment:
    """What is done to a file beside giving it a new band.

    Attributes:
        source: "telephone", "mp3" or "tape"; "plain": nothing.
        cutoff_hz, found_by: where the kept band ends, and how that was found.
        curve: (Hz, dB) points of a level correction, straight between them; none: nothing is corrected.
        keeps: whether what there is above the cutoff is kept where it is louder than a hole.
        low_hz: where the sound begins, if harmonics are to be added below; else 0.
        notes: what the user should know, one line each.
    """

    source: str
    cutoff_hz: float
    found_by: str
    curve: tuple[tuple[float, float], ...] = ()
    keeps: bool = False
    low_hz: float = 0.0
    notes: tuple[str, ...] = ()


def treatment_of(asked: str | None, low: bool, header: Header, analysis: Analysis) -> Treatment:
    """What a file gets.

    Args:
        asked: one of SOURCES; None: nothing but its new band.
        low: whether its low end is to be restored.
    """
    band = analysis.bandwidth
    plain = Treatment("plain", band.cutoff_hz, band.found_by)
    if band.found_by == "silence":
        return plain
    notes: list[str] = []
    source = asked or "plain"
    if asked == "auto":
        source, why = _detected(header, analysis)
        notes.append(f"--source auto: taken as {source} ({why})")
    kinds = {"telephone": _telephone, "mp3": _mp3, "tape": _tape}
    treatment = kinds[source](analysis) if source in kinds else plain
    notes += treatment.notes
    if not low:
        return replace(treatment, notes=tuple(notes))
    low_hz, note = _low_end(analysis.profile)
    return replace(treatment, low_hz=low_hz, notes=(*notes, note))


def _detected(header: Header, analysis: Analysis) -> tuple[str, str]:
    """The source that a file shows, and by what."""
    profile = analysis.profile
    if header.format in _MP3_FORMATS or header.subtype in _MP3_SUBTYPES:
        return "mp3", f"{header.format} file"
    if header.subtype in _TELEPHONE_SUBTYPES:
        return "telephone", f"{header.subtype} samples"
    # A telephone has neither what lies below 200 Hz nor what lies above 3.5 kHz.
    thin = profile.level_db(50, 250) < profile.level_db(350, 850) - _EDGE_DB
    edge_hz = _telephone_edge(profile)
    if thin and 3000 <= edge_hz <= 3700:
        return "telephone", f"a band of about 300 to {edge_hz:,.0f} Hz"
    top_hz = _top_of_sound(profile)
    pauses = np.median((profile.loud_db - profile.quiet_db)[profile.edges_hz[1:] <= max(top_hz, 1000.0)])
    above = (profile.edges_hz[:-1] >= top_hz) & (profile.edges_hz[1:] <= analysis.bandwidth.cutoff_hz)
    # Louder than what samples and dither leave.
    if top_hz < 0.7 * analysis.bandwidth.cutoff_hz and pauses >= _PAUSE_DB and profile.quiet_db[above].min() > -90:
        return "tape", f"steady hiss above {top_hz:,.0f} Hz"
    return "plain", "neither telephone, MP3 nor tape"


def _telephone(analysis: Analysis) -> Treatment:
    """The band ends where it has fallen by 12 dB, whatever noise the code left above; its low edge is raised.

    The high edge is not: what natural sounds lose there and what a line took cannot be told apart, and to raise it as
    the middle of the band points made speech worse (docs/super-resolution-files.md).
    """
    profile = analysis.profile
    cutoff_hz = min(_telephone_edge(profile), analysis.bandwidth.cutoff_hz)
    raised_db = float(np.clip(profile.level_db(350, 550) - profile.level_db(250, 350), 0.0, _BOOST_DB))
    curve = ((200.0, 0.0), (300.0, raised_db), (400.0, 0.0))
    note = f"telephone band: kept up to {cutoff_hz:,.0f} Hz, its low edge raised by {raised_db:.0f} dB"
    return Treatment("telephone", cutoff_hz, "telephone", curve, notes=(note,))


def _telephone_edge(profile: Profile) -> float:
    """The upper edge of the last band from 2.8 kHz up that lies within 12 dB of those at 2.4 to 3 kHz."""
    least = profile.level_db(2450, 2950) - _EDGE_DB
    # Up to the first band that has fallen: noise of the code and hum of the line lie beyond.
    edge_hz = 2950.0
    for low_hz, high_hz, loud_db in zip(profile.edges_hz[:-1], profile.edges_hz[1:], profile.loud_db):
        if low_hz < 2900:
            continue
        if loud_db < least or high_hz > 4100:
            break
        edge_hz = float(high_hz)
    return edge_hz


def _mp3(analysis: Analysis) -> Treatment:
    """The new band begins where the encoder left holes, and fills those; what it kept up there stays."""
    profile = analysis.profile
    end_hz = analysis.bandwidth.cutoff_hz
    # From the encoder's low-pass downwards, as long as bands are often empty.
    holes_hz = end_hz
    for low_hz, empty in zip(profile.edges_hz[-2::-1], profile.empty_share[::-1]):
        if low_hz >= end_hz:
            continue
        if empty < _HOLE_SHARE or low_hz < 1800:
            break
        holes_hz = float(low_hz)
    if holes_hz < end_hz:
        note = f"mp3: holes from {holes_hz:,.0f} Hz are filled, what lies between them up to {end_hz:,.0f} Hz is kept"
    else:
        note = f"mp3: its encoder ended at {end_hz:,.0f} Hz and left no holes below"
    return Treatment("mp3", holes_hz, analysis.bandwidth.found_by, keeps=True, notes=(note,))


def _tape(analysis: Analysis) -> Treatment:
    """The band ends where the sound sinks into the hiss; the hiss above gives way to the new band."""
    top_hz = min(_top_of_sound(analysis.profile), analysis.bandwidth.cutoff_hz)
    if top_hz >= 0.95 * analysis.bandwidth.cutoff_hz:
        note = "tape: no band of steady hiss found above the sound"
        return Treatment("tape", analysis.bandwidth.cutoff_hz, analysis.bandwidth.found_by, notes=(note,))
    note = f"tape: the sound sinks into hiss at {top_hz:,.0f} Hz; above that a new band takes the place of the hiss"
    return Treatment("tape", top_hz, "hiss", notes=(note,))


def _top_of_sound(profile: Profile) -> float:
    """The upper edge of the highest band that is not steady noise, 1,800 Hz at least."""
    moves = (profile.loud_db - profile.quiet_db >= _HISS_DB) & (profile.loud_db > -100)
    # One band alone is a whistle or chance.
    pairs = np.flatnonzero(moves[1:] & moves[:-1])
    return max(1800.0, float(profile.edges_hz[pairs[-1] + 2]) if len(pairs) else 0.0)


def _low_end(profile: Profile) -> tuple[float, str]:
    """Where a sound begins, and what is said of it; 0 where it has its low end."""
    least = profile.level_db(350, 850) - _EDGE_DB
    # Every band from the lowest on must be missing: a gap between partials is none.
    low_hz = 0.0
    for high_hz, loud_db in zip(profile.edges_hz[1:], profile.loud_db):
        if high_hz > 450 or loud_db >= least:
            break
        low_hz = float(high_hz)
    if low_hz < 150:
        return 0.0, "--low: the sound has its low end; nothing is added there"
    return low_hz, f"--low: the sound begins at {low_hz:,.0f} Hz; harmonics are added from {_LOW_HZ:.0f} Hz on"


# --- what is done to samples ----------------------------------------------------------------------------------------


def corrected(wave: Tensor, treatment: Treatment, sample_rate_hz: int) -> Tensor:
    """[channels, n] with its levels corrected, and its low end added."""
    made = wave
    if treatment.curve:
        made = _filtered(wave, sample_rate_hz, [(hz, 10 ** (db / 20)) for hz, db in treatment.curve])
    if treatment.low_hz:
        made = made + _low_harmonics(made, treatment.low_hz, sample_rate_hz)
    return made


def kept(given: Tensor, full: Tensor, hop: int) -> Tensor:
    """Two waves [B, T]: the first, with the second in its holes, cell by cell of 8 bins in a frame of 2 `hop`."""
    size = 2 * hop
    window = torch.hann_window(size).sqrt()
    spectra = [torch.stft(x, size, hop, window=window, pad_mode="constant", return_complex=True) for x in (given, full)]
    here, there = (
        F.avg_pool1d(x.abs().square().transpose(1, 2), _KEPT_BINS, _KEPT_BINS, ceil_mode=True)
        .repeat_interleave(_KEPT_BINS, dim=2)[..., : size // 2 + 1]
        .transpose(1, 2)
        for x in spectra
    )
    joined = torch.where(here > _KEPT_SHARE * there, spectra[0], spectra[1])
    return torch.istft(joined, size, hop, window=window, length=given.shape[-1])


def _low_harmonics(wave: Tensor, low_hz: float, sample_rate_hz: int) -> Tensor:
    """[channels, n] below `low_hz`: a rectifier makes the differences of neighbouring harmonics, the lowest among them.

    The rectified octave and a half above (Larsen and Aarts, Audio Bandwidth Extension, 2004, chapter 5), at the level
    of the octave above in 30 ms, plus 3 dB.
    """

    def band(x: Tensor, from_hz: float, to_hz: float) -> Tensor:
        return _filtered(x, sample_rate_hz, [(0.8 * from_hz, 0), (from_hz, 1), (to_hz, 1), (1.2 * to_hz, 0)])

    made = band(band(wave, low_hz, 3 * low_hz).abs(), _LOW_HZ, 0.9 * low_hz)
    levels = (_averaged(x.square(), round(_LEVEL_SEC * sample_rate_hz)) for x in (band(wave, low_hz, 2 * low_hz), made))
    wanted, have = levels
    # Where no harmonics lie side by side, the rectifier makes next to nothing, and nothing is to be made of that.
    gain = (wanted / have.clamp(min=1e-12)).sqrt().clamp(max=_MOST_LOW_GAIN)
    return made * gain * 10 ** (_LOW_DB / 20)


def _averaged(power: Tensor, samples: int) -> Tensor:
    """Moving average [channels, n], the ends repeated."""
    side = samples // 2
    padded = F.pad(power[:, None], (side, side), mode="replicate")
    return F.avg_pool1d(padded, 2 * side + 1, 1)[:, 0]


def _filtered(wave: Tensor, sample_rate_hz: int, points: list[tuple[float, float]]) -> Tensor:
    """[channels, n] times a gain that is straight between (Hz, gain) points, without a shift in time."""
    samples = wave.shape[-1]
    # A tenth of a second of silence for the ringing, and a size that the FFT is fast at.
    size = -(-(samples + sample_rate_hz // 10) // 4096) * 4096
    hz, gains = zip(*points)
    gain = np.interp(np.arange(size // 2 + 1) * sample_rate_hz / size, hz, gains)
    return torch.fft.irfft(torch.fft.rfft(wave, size) * torch.from_numpy(gain).to(wave), size)[..., :samples]
