"""PANNs and VGGish from a weights file: the published networks with random weights, against the published code's output.

The numbers under PUBLISHED were computed once, in float32, by the packages panns_inference 0.1.1 (with torchlibrosa
0.1.0, librosa 0.11.0) and torchvggish 0.2 (its last ReLU taken off), on these very weights and this very clip.
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import segue.evaluation.panns
import segue.evaluation.vggish
from segue.evaluation.embeddings import cached, key_of
from segue.evaluation.panns import FRONT_ENDS, Cnn14, PannsEmbedding
from segue.evaluation.vggish import PATCH_SAMPLES, Vggish, VggishEmbedding, log_mel
from segue.types import UserError

DOCS = Path(__file__).parents[2] / "docs" / "metrics.md"
# mean, deviation, and the first four numbers of the embedding
PUBLISHED = {
    "panns-cnn14-32k": (0.486747, 0.704667, (0.0109085, 0.950217, 1.97753, 0.0)),
    "panns-cnn14-16k": (0.453554, 0.657681, (0.0296701, 0.929238, 1.83489, 0.0)),
    "vggish": (-0.273799, 5.35317, (1.77317, 5.02895, -7.43818, 0.551696)),
    "vggish-pca": (112.117, 84.1851, (126.5, 255.0, 135.5, 109.5)),
}


def clip(rate_hz, seconds=2.3):
    """Two tones and a little noise, from a formula."""
    time_sec = np.arange(round(rate_hz * seconds)) / rate_hz
    noise = np.modf(np.sin(np.arange(len(time_sec)) * 12.9898) * 43758.5453)[0]
    tones = 0.3 * np.sin(2 * np.pi * 440 * time_sec) + 0.1 * np.sin(2 * np.pi * 3000 * time_sec) * (time_sec > 1)
    return (tones + 0.02 * noise).astype(np.float32)


def random_weights(network, seed):
    """name -> tensor for the network that a class makes: uniform (He) in half precision; means that fit a log-mel.

    Large tensors repeat a shorter draw: 150 million numbers would take longer than all else.
    """
    generator, made = np.random.default_rng(seed), {}
    with torch.device("meta"):
        shapes = network().state_dict()
    for name, value in shapes.items():
        if name.endswith("num_batches_tracked"):
            continue
        drawn = np.resize(generator.random(min(value.numel(), 100_003), dtype=np.float32) * 2 - 1, value.shape)
        if name.endswith(("running_var", "bn0.weight")) or (".bn" in name and name.endswith("weight")):
            drawn = 1 + 0.4 * drawn
        elif value.ndim == 1:
            drawn *= 0.2
        else:
            drawn *= (6.0 / value[0].numel()) ** 0.5
        made[name] = torch.from_numpy(drawn).half()
    if "bn0.running_mean" in made:
        made["bn0.running_mean"] -= 40.0
        made["bn0.running_var"] += 400.0
    return made


def slaney_filters(form):
    """Slaney's mel bands, written out: linear below 1 kHz, 27 to each factor of 6.4 above, triangles of area 1."""

    def mel(hz):
        return np.where(hz < 1000, 3 * hz / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))

    grid = np.linspace(0, 20_000, 2_000_001)
    edges = np.interp(np.linspace(mel(50.0), mel(form.f_max_hz), 66), mel(grid), grid)
    hz = np.arange(form.n_fft // 2 + 1)[:, None] * form.sample_rate_hz / form.n_fft
    low, centre, high = edges[:-2], edges[1:-1], edges[2:]
    triangles = np.maximum(0, np.minimum((hz - low) / (centre - low), (high - hz) / (high - centre)))
    return torch.from_numpy(2 * triangles / (high - low)).float()


def front_end_tensors(form):
    """What a PANNs checkpoint holds of its front end."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(form.n_fft) / form.n_fft)
    angle = 2 * np.pi * np.outer(np.arange(form.n_fft // 2 + 1), np.arange(form.n_fft)) / form.n_fft
    return {
        "spectrogram_extractor.stft.conv_real.weight": torch.from_numpy(window * np.cos(angle)).float()[:, None],
        "logmel_extractor.melW": slaney_filters(form),
    }


def vggish_tensors():
    tensors = random_weights(Vggish, 2)
    generator = np.random.default_rng(3)
    tensors["pca_eigen_vectors"] = torch.from_numpy(generator.random((128, 128), dtype=np.float32) - 0.5) / 10
    tensors["pca_means"] = torch.from_numpy(generator.random((128, 1), dtype=np.float32) - 0.5)
    return tensors


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """name -> a whole weights file; deleted at the end, they are large."""
    folder = tmp_path_factory.mktemp("weights")
    network = random_weights(Cnn14, 1)
    paths = {}
    for form in FRONT_ENDS:
        path = paths[form.sample_rate_hz] = folder / f"cnn14-{form.sample_rate_hz}.safetensors"
        save_file(network | front_end_tensors(form), path)
    paths["vggish"] = folder / "vggish.safetensors"
    save_file(vggish_tensors(), paths["vggish"])
    yield paths
    for path in paths.values():
        path.unlink()


@pytest.fixture(scope="module")
def embeddings(files):
    made = [PannsEmbedding(files[form.sample_rate_hz]) for form in FRONT_ENDS]
    made += [VggishEmbedding(files["vggish"], postprocess=p) for p in (False, True)]
    return {e.name: e for e in made}


@pytest.mark.parametrize("name", PUBLISHED)
def test_agrees_with_the_published_code(name, embeddings):
    embedding = embeddings[name].embed(clip(embeddings[name].sample_rate_hz))["embedding"]
    mean, deviation, first = PUBLISHED[name]
    assert embedding.shape == (embeddings[name].dim,) == ((2048,) if "panns" in name else (128,))
    assert (embedding.mean(), embedding.std()) == (pytest.approx(mean, rel=1e-4), pytest.approx(deviation, rel=1e-4))
    assert embedding[:4] == pytest.approx(first, rel=1e-3, abs=1e-4)
    assert embeddings[name].sample_rate_hz == (32_000 if name.endswith("32k") else 16_000)


@pytest.mark.parametrize("form", FRONT_ENDS, ids=lambda form: f"{form.sample_rate_hz}")
def test_a_tone_at_a_mel_centre_reads_its_level_in_its_band(form):
    band = 30
    bank = form.filters().double()
    hz = torch.arange(len(bank)) * form.sample_rate_hz / form.n_fft
    bin_index = int(bank[:, band].argmax())
    wave = torch.sin(2 * np.pi * hz[bin_index] * torch.arange(form.sample_rate_hz) / form.sample_rate_hz)
    picture = form.log_mel(wave[None])[0]
    assert picture.shape == (1 + form.sample_rate_hz // form.hop_samples, 64)
    inner = picture[5:-5]
    assert (inner.argmax(dim=1) == band).all()
    # A sine on a bin reads n_fft / 4 there through a Hann window, half of it in the bins beside, nothing elsewhere.
    power = (form.n_fft / 4) ** 2 * (bank[bin_index] + (bank[bin_index - 1] + bank[bin_index + 1]) / 4)
    assert inner[:, band].double() == pytest.approx(10 * float(power[band].log10()), abs=1e-2)
    assert form.log_mel(torch.zeros(1, 4000)).unique().tolist() == [-100.0]


def test_vggish_hears_a_tone_in_the_band_whose_centre_it_is():
    mel = 1127 * np.log(1 + np.array([125.0, 7500.0]) / 700)
    centres = 700 * (np.exp(np.linspace(*mel, 66)[1:-1] / 1127) - 1)
    time_sec = torch.arange(16_000, dtype=torch.float64) / 16_000
    for band in (20, 40, 60):
        picture = log_mel(torch.sin(2 * np.pi * centres[band] * time_sec).float())
        assert picture.shape == (98, 64) and (picture.argmax(dim=1) == band).all()
    assert log_mel(torch.zeros(400)).flatten() == pytest.approx(np.full(64, np.log(0.01)))


def test_repeats_ignores_what_lies_behind_the_crop_and_takes_short_clips(embeddings, tmp_path):
    for e in embeddings.values():
        wave = clip(e.sample_rate_hz)
        first = e.embed(wave)["embedding"]
        np.testing.assert_array_equal(e.embed(wave)["embedding"], first)
        short = e.embed(wave[:100])["embedding"]
        assert np.isfinite(short).all() and np.abs(short - first).max() > 0
    vggish = embeddings["vggish"]
    two = np.concatenate([clip(16_000)[:15_360], np.zeros(15_360), clip(16_000)[:PATCH_SAMPLES]]).astype(np.float32)
    third = vggish.embed(two[30_720:])["embedding"]
    assert not np.allclose(vggish.embed(two)["embedding"], third, atol=1e-2)
    vggish.crop_sec = 1.0  # one patch and a rest of 400 samples
    try:
        cut = vggish.embed(two)["embedding"]
        np.testing.assert_array_equal(cut, vggish.embed(two[:16_000])["embedding"])
    finally:
        vggish.crop_sec = 10.0
    assert len({key_of(e) for e in embeddings.values()}) == 4
    assert cached(tmp_path, "one", vggish, lambda: two)["embedding"].shape == (128,)
    assert all(e.card()["weights"] and e.card()["dim"] == e.dim for e in embeddings.values())


def broken(tensors, **changes):
    return {k: v for k, v in {**tensors, **changes}.items() if v is not None}


def test_other_tensors_get_one_line(files, tmp_path, monkeypatch):
    panns, vggish, path = load_file(files[16_000]), load_file(files["vggish"]), tmp_path / "w.safetensors"
    path.touch()  # hashed; the tensors are handed over, as files of this size take long
    mel = panns["logmel_extractor.melW"]
    cases = [
        (PannsEmbedding, broken(panns, **{"logmel_extractor.melW": None}), "lacks logmel_extractor.melW"),
        (PannsEmbedding, broken(panns, **{"logmel_extractor.melW": mel.roll(1, 0)}), "front end is not Cnn14's"),
        (PannsEmbedding, broken(panns, **{"logmel_extractor.melW": mel[:129]}), "front end is not Cnn14's"),
        (PannsEmbedding, broken(panns, **{"conv_block6.bn2.running_var": None}), "lacks 1 of 66 weights (conv_block6"),
        (PannsEmbedding, broken(panns, **{"fc1.weight": torch.zeros(512, 2048)}), "fc1.weight is [512, 2048], not [2048, 2048]"),
        (PannsEmbedding, broken(panns, **{"fc1.bias": torch.full((2048,), torch.nan)}), "fc1.bias holds values that are not finite"),
        (PannsEmbedding, vggish, "lacks logmel_extractor.melW"),
        (VggishEmbedding, panns, "lacks 18 of 18 weights (features.0.weight"),
        (partial(VggishEmbedding, postprocess=True), broken(vggish, pca_means=None), "lacks pca_eigen_vectors or pca_means; hint: convert them with it"),
        (partial(VggishEmbedding, postprocess=True), broken(vggish, pca_means=torch.zeros(64)), "pca_means is [64], not [128]"),
    ]  # fmt: skip
    for make, tensors, words in cases:
        for module in (segue.evaluation.panns, segue.evaluation.vggish):
            monkeypatch.setattr(module, "read_weights", lambda option, path, tensors=tensors: tensors)
        with pytest.raises(UserError, match=re.escape(words)) as error:
            make(path)
        assert "\n" not in str(error.value)
    monkeypatch.setattr(segue.evaluation.vggish, "read_weights", lambda option, path: broken(vggish, pca_means=None))
    assert VggishEmbedding(path).dim == 128  # whitening is not asked for
    with pytest.raises(UserError, match="longer than 0"):
        VggishEmbedding(path, crop_sec=0.0)


def test_files_that_are_no_weights_get_one_line(tmp_path):
    pickle, torn = tmp_path / "Cnn14_16k_mAP=0.438.pth", tmp_path / "torn.safetensors"
    pickle.write_bytes(b"PK"), torn.write_bytes(b"torn")
    for make in (PannsEmbedding, VggishEmbedding):
        with pytest.raises(UserError, match=r"no .safetensors file .pickles are not read.; hint: convert it once"):
            make(pickle)
        with pytest.raises(UserError, match="damaged"):
            make(torn)
        with pytest.raises(UserError, match="no file"):
            make(tmp_path / "nowhere.safetensors")


def test_the_conversion_that_the_docs_show_works(tmp_path, monkeypatch):
    """Small tensors in the published containers: a dictionary around PANNs' weights, numpy arrays for VGGish's PCA."""
    page = DOCS.read_text()
    snippets = re.findall(r"```python\n(.*?)```", page[page.index("### PANNs and VGGish") :], flags=re.DOTALL)
    assert len(snippets) == 2
    monkeypatch.chdir(tmp_path)
    turned = torch.arange(6.0).reshape(2, 3).T
    torch.save({"iteration": 7, "model": {"a": turned, "n": torch.tensor(3)}}, "Cnn14_16k_mAP=0.438.pth")
    torch.save({"features.0.weight": turned}, "vggish-10086976.pth")
    torch.save({"pca_means": np.arange(4.0)}, "vggish_pca_params-970ea276.pth")
    for snippet in snippets:
        exec(compile(snippet, "docs/metrics.md", "exec"), {})
    panns, vggish = load_file("cnn14-16k.safetensors"), load_file("vggish.safetensors")
    assert torch.equal(panns["a"], turned) and panns["n"] == 3
    assert torch.equal(vggish["features.0.weight"], turned) and vggish["pca_means"].tolist() == [0, 1, 2, 3]
