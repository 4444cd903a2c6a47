"""Public models behind adapters: against diffusers itself, through training, sampling and export."""

import json
import shutil
from dataclasses import replace
from functools import cache

import pytest
import torch
from running import assert_same, run
from tiny_models import CHANNELS, KINDS, SAMPLE_SIZE, SECONDS, encode
from torch.nn import functional as F

from segue.conditioners import load_conditioner
from segue.data.loader import LatentLoader
from segue.models.adapters import load_adapter
from segue.models.files import load_model, model_file
from segue.pipeline import Pipeline, Sampling
from segue.process.noise import BatchDraws, keyed_generator
from segue.recipes import fine_tuning, load_recipe
from segue.training import build
from segue.training.checkpoint import list_checkpoints
from segue.training.config import override
from segue.training.optim import learning_rate
from segue.training.step import draw_example, run_model
from segue.types import UserError
from segue.workflows.export import export_diffusers

CAPTION = "hard kick drum playing C 5"
SHORT = ["train.precision=fp32", "train.total_examples=24", "train.batch_size=4", "train.validation_clips=4", "train.checkpoint_every=12",
         "train.tensorboard=false", "train.keep_last=5", "probe.clips=8", "optim.learning_rate=1e-3"]  # fmt: skip


def config(kind, folders, recipe="static-checkpoint", *changes):
    return override(fine_tuning(load_recipe(recipe), str(folders[kind])), [*SHORT, *changes])


@cache
def pipeline_of(kind, folder):
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def rows_of(cached):
    """Four rows to train on, the first two with captions of different lengths."""
    rows = cached.rows("train")
    words = [len(cached.row(i)["captions"][0].split()) for i in rows]
    return [rows[words.index(min(words))], rows[words.index(max(words))], *rows[-2:]]


def batch_of(cached, settings, dropout=0.5):
    """A drawn batch as the loop has it, about half of its captions dropped; captions and clips of several lengths."""
    task = build.make_task(settings, cached)
    draws = BatchDraws(1, 0, 4)
    x_0, condition, mask = task.prepare(cached.batch(rows_of(cached)), draws)
    assert len(set(condition.tokens_mask.sum(1).tolist())) > 1
    t = torch.tensor([0.1, 0.4, 0.7, 0.95])
    return draw_example(x_0, condition, mask, t, draws, dropout)


# --- a plain training step in diffusers, written out ------------------------------------------------------------------


def stable_audio(pipeline, transformer, example):
    """`StableAudioPipeline`'s layout of conditions; v of the cosine path, time of the EDM scheduler."""
    from diffusers.models.embeddings import get_1d_rotary_pos_embed

    tokens, mask = example.condition.text()
    tokens = F.pad(tokens * mask[..., None], (0, 0, 0, 12 - tokens.shape[1]))
    numbers = pipeline.projection_model(start_seconds=torch.zeros(len(tokens)), end_seconds=example.condition.seconds)
    start, end = numbers.seconds_start_hidden_states, numbers.seconds_end_hidden_states
    context = torch.cat([tokens, start, end], dim=1)
    context[example.condition.drop] = 0.0
    t = example.t[:, None, None]
    norm = torch.hypot(1 - example.t, example.t)
    alpha, sigma = ((1 - example.t) / norm)[:, None, None], (example.t / norm)[:, None, None]
    noisy = ((1 - t) * example.x_0 + t * example.eps) / norm[:, None, None]
    time = 0.25 * torch.log(example.t / (1 - example.t))
    rotary = get_1d_rotary_pos_embed(4, noisy.shape[-1] + 1, use_real=True, repeat_interleave_real=False)
    found = transformer(noisy, time, context, torch.cat([start, end], dim=2), rotary, return_dict=False)[0]
    return found, alpha * example.eps - sigma * example.x_0


def stable_audio_3(pipeline, transformer, example):
    tokens, mask = example.condition.text()
    tokens = F.pad(tokens, (0, 0, 0, 14 - tokens.shape[1]))
    mask = F.pad(mask, (0, 14 - mask.shape[1]))
    empty, empty_mask = pipeline.encode_prompt([""], torch.device("cpu"), 1)
    drop = example.condition.drop
    # The pipeline leaves padding as the encoder made it; the model puts its own there, whatever it is.
    tokens, mask = torch.where(drop[:, None, None], empty, tokens), torch.where(drop[:, None], empty_mask.bool(), mask)
    length = pipeline.duration_embedder(example.condition.seconds)
    context, context_mask = pipeline.prepare_cross_attention(tokens, mask, length)
    noisy = (1 - example.t)[:, None, None] * example.x_0 + example.t[:, None, None] * example.eps
    found = transformer(noisy, example.t, context, length, context_mask, return_dict=False)[0]
    return found, example.eps - example.x_0


def ace_step(pipeline, transformer, example):
    tokens, mask = example.condition.text()
    null = pipeline.condition_encoder.null_condition_emb
    noisy = (1 - example.t)[:, None, None] * example.x_0 + example.t[:, None, None] * example.eps
    silence = pipeline.condition_encoder.silence_latent[:, : noisy.shape[-1]]
    context = torch.cat([silence, torch.ones_like(silence)], dim=-1)
    if bool(mask.all()):
        own = torch.where(example.condition.drop[:, None, None], null, tokens)
        context = context.expand(len(own), -1, -1)
        found = transformer(noisy.transpose(1, 2), example.t, example.t, own, context, return_dict=False)[0]
        return found.transpose(1, 2), example.eps - example.x_0
    found = []
    # One by one: the model attends to padding, and an example alone has none.
    for i, drop in enumerate(example.condition.drop):
        own = tokens[i : i + 1, mask[i]]
        own = null.expand_as(own) if drop else own
        t = example.t[i : i + 1]
        found.append(transformer(noisy[i : i + 1].transpose(1, 2), t, t, own, context, return_dict=False)[0])
    return torch.cat(found).transpose(1, 2), example.eps - example.x_0


DIRECT = {"stable-audio": stable_audio, "stable-audio-3": stable_audio_3, "ace-step": ace_step}


def direct_losses(kind, pipeline, transformer, example):
    found, target = DIRECT[kind](pipeline, transformer, example)
    error = (found - target).square()
    if example.mask is None:
        return error.flatten(1).mean(1)
    return (error * example.mask[:, None]).sum((1, 2)) / (example.mask.sum(1) * CHANNELS)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_diffusers(kind, tiny_folders, tiny_caches):
    settings = config(kind, tiny_folders)
    cached = tiny_caches[kind]
    example = batch_of(cached, settings)
    assert 0 < int(example.condition.drop.sum()) < 4 and example.mask is not None
    model = build.build_model(settings, cached, 0)
    loss = run_model(model, example, model.predicts).loss
    loss.mean().backward()

    pipeline = pipeline_of(kind, tiny_folders[kind])
    transformer = type(pipeline.transformer).from_pretrained(tiny_folders[kind] / "transformer")
    wanted = direct_losses(kind, pipeline, transformer, example)
    wanted.mean().backward()
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-5)
    for (name, p), q in zip(model.transformer.named_parameters(), transformer.parameters(), strict=True):
        if q.grad is None:
            assert p.grad is None or not p.grad.any(), name
        else:
            torch.testing.assert_close(p.grad, q.grad, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("transformer."))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_holds_silence_and_counts_for_nothing(kind, tiny_folders, tiny_caches):
    settings = config(kind, tiny_folders)
    cached = tiny_caches[kind]
    example = batch_of(cached, settings)
    short = int(example.mask.sum(1).argmin())
    behind = example.x_0[short][:, ~example.mask[short]]
    silence = build.own_space(cached).encode(torch.zeros(1, 2, round(SECONDS * 8000)))[0][:, ~example.mask[short]]
    assert torch.equal(behind, silence)
    lengths = [cached.row(i)["length_sec"] for i in rows_of(cached)]
    assert torch.equal(example.condition.seconds, torch.tensor(lengths))
    model = build.build_model(settings, cached, 0)
    found = run_model(model, example, model.predicts).loss
    assert torch.isfinite(found).all() and bool(
        (found != run_model(model, replace(example, mask=None), model.predicts).loss).any()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_controller_a_run_is_a_plain_loop_in_diffusers(kind, tiny_folders, tiny_caches, recordings, tmp_path):
    """Bit for bit: batch, times and noise are ours, and the rest is diffusers and torch."""
    settings = config(kind, tiny_folders, "static-checkpoint", "train.condition_dropout=0", "optim.grad_clip=0")
    cached = tiny_caches[kind]
    if kind == "ace-step":  # captions of one length: its padding is masked here, which the model alone does not do
        entries = [{"path": p.name, "caption": "a soft violin"} for p in sorted(recordings.iterdir())]
        shutil.copytree(recordings, tmp_path / "sounds")
        (tmp_path / "sounds" / "list.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        cached = encode(tmp_path / "sounds" / "list.jsonl", tiny_folders[kind], tmp_path / "cache", "manifest")
    _, saved = run(settings, cached, tmp_path)

    pipeline = pipeline_of(kind, tiny_folders[kind])
    transformer = type(pipeline.transformer).from_pretrained(tiny_folders[kind] / "transformer").train()
    matrices = [p for p in transformer.parameters() if p.requires_grad and p.ndim == 2]
    others = [p for p in transformer.parameters() if p.requires_grad and p.ndim != 2]
    groups = [{"params": matrices, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    loader = LatentLoader(cached, "train", 4, 0)
    task = build.make_task(settings, cached)
    times = settings.policy.static_timesteps
    for seen in range(0, 24, 4):
        draws = BatchDraws(0, seen, 4)
        x_0, condition, mask = task.prepare(loader.next_batch(), draws)
        t = times.sample(4, keyed_generator(0, "times", seen), stratified=True)
        example = draw_example(x_0, condition, mask, t, draws)
        direct_losses(kind, pipeline, transformer, example).mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(settings.optim, seen / 24)
        optimizer.step()
        optimizer.zero_grad()
    loader.close()
    for name, value in transformer.state_dict().items():
        assert torch.equal(value, saved[f"model.transformer.{name}"]), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_goes_on_bit_for_bit(kind, tiny_folders, tiny_caches, tmp_path):
    settings = config(kind, tiny_folders)
    _, whole = run(settings, tiny_caches[kind], tmp_path)
    for folder in list_checkpoints(tmp_path)[1:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    _, resumed = run(settings, tiny_caches[kind], tmp_path, resume=True)
    assert_same(whole, resumed)


def sampled(kind, pipeline, noise, scale):
    """Latents of the diffusers pipeline from this noise."""
    options = {"num_inference_steps": 6, "guidance_scale": scale, "output_type": "latent"}
    if kind == "stable-audio":
        return pipeline(CAPTION, audio_end_in_s=SECONDS, latents=noise.clone(), **options).audios
    if kind == "stable-audio-3":
        return pipeline(CAPTION, duration=SECONDS, latents=noise.clone(), **options).audios
    return pipeline(CAPTION, audio_duration=SECONDS, latents=noise.mT.clone(), **options).audios.mT


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_is_exported_and_samples_as_the_diffusers_pipeline_does(kind, tiny_folders, tiny_caches, tmp_path):
    import diffusers

    run(config(kind, tiny_folders), tiny_caches[kind], tmp_path / "run")
    export_diffusers(tmp_path / "run", tmp_path / "out")
    theirs = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "out")
    theirs.set_progress_bar_config(disable=True)
    ours = Pipeline.load(tmp_path / "run")
    noise = torch.randn(1, CHANNELS, SAMPLE_SIZE, generator=torch.Generator().manual_seed(0))
    for scale in (1.0, 3.0):
        sampling = replace(ours.own_sampling, steps=6, guidance_scale=scale)
        found = ours.latents([CAPTION], frames=SAMPLE_SIZE, sampling=sampling, noise=noise)
        torch.testing.assert_close(found, sampled(kind, theirs, noise, scale), rtol=1e-4, atol=1e-4)
    # The weights have moved, and everything else came along.
    before = load_adapter(str(tiny_folders[kind])).transformer.state_dict()
    assert any(not torch.equal(v, before[k]) for k, v in theirs.transformer.state_dict().items())
    with pytest.raises(UserError, match="exists already"):
        export_diffusers(tmp_path / "run", tmp_path / "out")


def test_an_example_of_ace_step_does_not_depend_on_the_others_of_its_batch(tiny_folders, tiny_caches):
    settings = config("ace-step", tiny_folders)
    example = batch_of(tiny_caches["ace-step"], settings, dropout=0.0)
    model = build.build_model(settings, tiny_caches["ace-step"], 0)
    together = run_model(model, example, "velocity").loss
    alone = torch.cat([run_model(model, part, "velocity").loss for part in example.split(4)])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_changes_no_gradient(kind, tiny_folders, tiny_caches):
    settings = config(kind, tiny_folders)
    example = batch_of(tiny_caches[kind], settings)
    grads = []
    for value in ("false", "true"):
        changed = override(settings, [f"model.gradient_checkpointing={value}"])
        model = build.build_model(changed, tiny_caches[kind], 0).train()
        assert model.transformer.gradient_checkpointing == (value == "true")
        run_model(model, example, model.predicts).loss.mean().backward()
        grads.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert_same(*grads)


def test_a_pipeline_of_a_model_that_was_saved_samples_by_its_own_settings(tiny_folders, tiny_caches, tmp_path):
    run(config("stable-audio", tiny_folders), tiny_caches["stable-audio"], tmp_path)
    pipeline = Pipeline.load(tmp_path)
    assert pipeline.own_sampling == Sampling(100, "dpm", 7.0, guidance_rescale=0.0)
    waves = pipeline.generate([CAPTION], seconds=0.3, sampling=Sampling(2, "dpm", 1.0))
    assert waves.shape[-1] == 2400
    # Longer than its window: made in several.
    longer = pipeline.generate([CAPTION], seconds=1.0, sampling=Sampling(2, "dpm", 1.0))
    assert longer.shape[-1] == 8000 and bool(longer.isfinite().all())
    saved = load_model(model_file(tmp_path))
    assert torch.equal(saved.mean, torch.zeros(CHANNELS, 1)) and torch.equal(saved.std, torch.ones(CHANNELS, 1))


def test_lyrics_change_what_ace_step_is_given(tiny_folders):
    text = load_conditioner(str(tiny_folders["ace-step"])).for_seconds(SECONDS)
    plain, mask = text.encode(["a soft violin", "a soft violin\nlyrics: low bell"])
    assert mask.sum(1)[1] > mask.sum(1)[0]
    longer, _ = text.for_seconds(30.0).encode(["a soft violin"])
    assert plain.shape[1] != longer.shape[1] or not torch.equal(plain[:1], longer)
