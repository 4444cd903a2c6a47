"""The codec's page."""

import re

from segue.report.codec_page import RoundTrip, write_codec_report


def report(log_mel_l1):
    row = {"split": "test", "clips": 4, "log_mel_l1": log_mel_l1, "lsd": 0.5, "convergence": 0.25, "high_band_db": -1.5}
    return {
        "kinds": {"note <loud>": row, "drum": {**row, "lsd": 0.625}},
        "latents": {"mean_abs": 0.1, "std_min": 0.9, "std_max": 1.1, "lag1_correlation": 0.96},
        "latent_noise": 0.1,
        "decode_sec_per_sec": 75.2,
        "threads": 2,
    }


def test_page_holds_figures_and_sounds_of_every_codec(tmp_path, wave):
    trips = [RoundTrip("note <loud>", "a&b.flac", {"original": wave, "before": wave, "refined": 0.9 * wave}, 16000)]
    figures = {"before": report(0.321), "refined": report(0.234)}
    path = write_codec_report(tmp_path / "report.html", "A refined codec", "lead", figures, trips, "segue codec refine")
    text = path.read_text()
    assert text.count("<audio") == text.count("data:image/png") == 3
    for shown in ("note &lt;loud&gt;, refined", "a&amp;b.flac", "0.321", "0.234", "0.625", "75x real time"):
        assert shown in text
    assert "<loud>" not in text
    assert not re.search(r'(src|href)="(?!data:)', text), "the page needs no file and no network"


def test_one_codec_is_named_by_kind_alone(tmp_path):
    text = write_codec_report(tmp_path / "r.html", "A codec", "lead", {"codec": report(0.2)}, []).read_text()
    assert "<th>drum</th>" in text
