"""What the demo set can play and how it says so: instruments, pitches, chords, drums, held-out pairs, captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

NOTE_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
LOUDNESS = {"soft": (40, 52), "medium": (70, 84), "loud": (108, 124)}  # MIDI velocity, inclusive
LENGTHS = {"short": (0.12, 0.20), "medium": (0.36, 0.48), "long": (0.72, 0.88)}  # share of the clip
CHORDS = {
    "major": (0, 4, 7),
    "minor": (0, 3, 7),
    "diminished": (0, 3, 6),
    "augmented": (0, 4, 8),
    "suspended fourth": (0, 5, 7),
    "dominant seventh": (0, 4, 7, 10),
    "major seventh": (0, 4, 7, 11),
    "minor seventh": (0, 3, 7, 10),
}
DRUMS = {  # General MIDI percussion keys
    "bass drum": 36,
    "side stick": 37,
    "snare drum": 38,
    "hand clap": 39,
    "low tom": 41,
    "closed hi-hat": 42,
    "open hi-hat": 46,
    "crash cymbal": 49,
    "high tom": 50,
    "ride cymbal": 51,
    "tambourine": 54,
    "cowbell": 56,
}
HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class Instrument:
    """One melodic sound of the demo set.

    Attributes:
        name, family: words of the captions.
        program: General MIDI program, counted from 0.
        lowest, highest: MIDI pitches that it plays, inclusive.
        transpose: semitones added to the MIDI key so that the sounding fundamental is the named pitch.
        chords: whether it plays chords.
        sustains: whether a longer note sounds longer; struck bars ring on regardless.
    """

    name: str
    family: str
    program: int
    lowest: int
    highest: int
    transpose: int = 0
    chords: bool = False
    sustains: bool = True


INSTRUMENTS = (
    Instrument("acoustic bass", "bass", 32, 36, 60),
    Instrument("electric bass", "bass", 33, 36, 60),
    Instrument("synth bass", "bass", 38, 36, 60),
    Instrument("trumpet", "brass", 56, 54, 82),
    Instrument("trombone", "brass", 57, 40, 70),
    Instrument("french horn", "brass", 60, 41, 74),
    Instrument("flute", "flute", 73, 60, 84),
    Instrument("recorder", "flute", 74, 60, 84),
    Instrument("pan flute", "flute", 75, 60, 84),
    Instrument("nylon guitar", "guitar", 24, 40, 76, chords=True),
    Instrument("electric guitar", "guitar", 27, 40, 80, chords=True),
    Instrument("distorted guitar", "guitar", 30, 40, 76),
    Instrument("piano", "keyboard", 0, 36, 84, chords=True),
    Instrument("electric piano", "keyboard", 4, 36, 84, chords=True),
    Instrument("harpsichord", "keyboard", 6, 36, 84, chords=True),
    Instrument("vibraphone", "mallet", 11, 53, 84, chords=True, sustains=False),
    Instrument("marimba", "mallet", 12, 48, 84, chords=True, sustains=False),
    Instrument("xylophone", "mallet", 13, 60, 84, sustains=False),
    Instrument("drawbar organ", "organ", 16, 36, 72, transpose=12, chords=True),
    Instrument("reed organ", "organ", 20, 36, 84, chords=True),
    Instrument("accordion", "organ", 21, 41, 72, chords=True),
    Instrument("tenor saxophone", "reed", 66, 44, 76),
    Instrument("bassoon", "reed", 70, 36, 72),
    Instrument("clarinet", "reed", 71, 50, 84),
    Instrument("violin", "string", 40, 55, 84),
    Instrument("cello", "string", 42, 36, 72),
    Instrument("string section", "string", 48, 40, 84, chords=True),
    Instrument("square lead", "synth lead", 80, 36, 84, chords=True),
    Instrument("sawtooth lead", "synth lead", 81, 36, 84, chords=True),
    Instrument("calliope lead", "synth lead", 82, 48, 84),
    Instrument("choir", "vocal", 52, 48, 79, chords=True),
    Instrument("solo voice", "vocal", 53, 48, 79),
    Instrument("synth voice", "vocal", 54, 48, 84, chords=True),
)


@dataclass(frozen=True)
class Vocabulary:
    """Everything that a caption of the demo set can name.

    Attributes:
        instruments: melodic instrument names, in order.
        families: family names, "drum" last.
        family_of: instrument or drum name -> family.
        pitch_range: instrument name -> (lowest, highest) MIDI pitch, inclusive.
        drums: drum names.
        chords: chord qualities.
    """

    instruments: tuple[str, ...]
    families: tuple[str, ...]
    family_of: Mapping[str, str]
    pitch_range: Mapping[str, tuple[int, int]]
    drums: tuple[str, ...]
    chords: tuple[str, ...]


def demo_vocabulary() -> Vocabulary:
    """The words of the demo set."""
    return Vocabulary(
        instruments=tuple(i.name for i in INSTRUMENTS),
        families=(*dict.fromkeys(i.family for i in INSTRUMENTS), "drum"),
        family_of={i.name: i.family for i in INSTRUMENTS} | dict.fromkeys(DRUMS, "drum"),
        pitch_range={i.name: (i.lowest, i.highest) for i in INSTRUMENTS},
        drums=tuple(DRUMS),
        chords=tuple(CHORDS),
    )


@lru_cache(maxsize=1)
def held_out_pairs() -> frozenset[tuple[str, int]]:
    """(instrument, MIDI pitch) pairs that only the test split holds: of each instrument, the tenth with the smallest
    hash, so that the pairs depend neither on the number of clips nor on the seed, and spread over the instruments.
    """
    held = set()
    for instrument in INSTRUMENTS:
        pitches = range(instrument.lowest, instrument.highest + 1)
        ranked = sorted(pitches, key=lambda pitch: sha256(f"{instrument.name}:{pitch}".encode()).digest())
        held |= {(instrument.name, pitch) for pitch in ranked[: round(HELD_OUT_SHARE * len(ranked))]}
    return frozenset(held)


def pitch_name(pitch: int) -> str:
    """MIDI pitch -> name with its octave, middle C = "C 4" (60)."""
    return f"{NOTE_NAMES[pitch % 12]} {pitch // 12 - 1}"


# Phrasings are templates over: {sound} the bare instrument; {L} loudness, {D} length words, empty where unknown;
# {p} pitch name; {a:...} puts "a" or "an" before its text. Some leave words out on purpose: people do.
_NOTE = (
    "{a:{L} {D} {sound}} playing {p}",
    "{a:{L} {sound}} playing {p}",
    "{a:{D} {p}} played on {a:{sound}}",
    "{p} on {a:{sound}}, {L}, {D}",
    "{a:{L} {D} note} on {a:{sound}}, {p}",
    "{sound}, {p}, {L}",
    "{a:{sound}} playing {a:{L} {D} {p}}",
    "{a:{sound}} playing {p}",
)
_DRUM = (
    "{a:{L} {sound}}",
    "{a:{sound}} hit, {L}",
    "one {L} hit of {a:{sound}}",
    "{a:{sound}}",
    "{sound}, {L}",
)
_CHORD = (
    "{p} {chord} chord on {a:{sound}}, {L}, {D}",
    "{a:{L} {D} {sound}} playing {a:{p} {chord} chord}",
    "{a:{sound}} playing {a:{p} {chord} chord}",
    "{a:{L} {p} {chord} chord} played on {a:{sound}}",
    "{sound}, {p} {chord} chord, {L}",
)
_JOIN = ("{0} followed by {1}", "{0}, then {1}", "first {0}, then {1}", "{0} and then {1}")
_EVENT_IN_SEQUENCE = {"note": _NOTE[:2] + _NOTE[-1:], "drum": _DRUM[:1] + _DRUM[3:4]}
_LOUDNESS_WORDS = {"soft": "soft", "medium": "medium loud", "loud": "loud"}
_LENGTH_WORDS = {"short": "short", "medium": "medium-length", "long": "long"}


def phrasings(events: Sequence[Mapping]) -> int:
    """How many phrasings `caption_of` knows for these events."""
    if len(events) == 1:
        return len({"note": _NOTE, "drum": _DRUM, "chord": _CHORD}[events[0]["kind"]])
    return len(_JOIN) * max(len(x) for x in _EVENT_IN_SEQUENCE.values())


def caption_of(events: Mapping | Sequence[Mapping], phrasing: int = 0) -> str:
    """The caption of one event (note, drum, chord), or of two in order.

    Args:
        events: event dicts as the manifest holds them: kind, instrument, and where they apply pitch_name, loudness,
            length, chord.
        phrasing: which wording, 0 the fullest; taken modulo the number there is.
    """
    events = [events] if isinstance(events, Mapping) else list(events)
    if len(events) == 1:
        templates = {"note": _NOTE, "drum": _DRUM, "chord": _CHORD}[events[0]["kind"]]
        return _fill(templates[phrasing % len(templates)], events[0])
    join = _JOIN[phrasing % len(_JOIN)]
    inner = phrasing // len(_JOIN)
    parts = []
    for event in events:
        templates = _EVENT_IN_SEQUENCE[event["kind"]]
        parts.append(_fill(templates[inner % len(templates)], event))
    return join.format(*parts)


def _fill(template: str, event: Mapping) -> str:
    words = {
        "sound": event["instrument"],
        "p": event.get("pitch_name") or "",
        "chord": event.get("chord") or "",
        "L": _LOUDNESS_WORDS.get(event.get("loudness") or "", ""),
        "D": _LENGTH_WORDS.get(event.get("length") or "", ""),
    }
    # Unknown words leave blanks behind, which are made single, and empty parts between commas, which go.
    for key, word in words.items():
        template = template.replace("{" + key + "}", word)
    text = ", ".join(part for part in (" ".join(part.split()) for part in template.split(",")) if part)
    # From the innermost outwards, since an article may stand within another's phrase.
    while "{a:" in text:
        start = text.rindex("{a:")
        end = text.index("}", start)
        text = text[:start] + _with_article(text[start + 3 : end].strip()) + text[end + 1 :]
    return text


def _with_article(phrase: str) -> str:
    first = phrase.split()[0]
    # Note names are spoken as letters: "an A", "an F", but "a C".
    is_note = first.rstrip("#") in NOTE_NAMES
    vowel = first[0] in "AEF" if is_note else first[0].lower() in "aeiou"
    return f"{'an' if vowel else 'a'} {phrase}"
