"""The tab Edit: an uploaded sound, varied, continued, or with a range replaced that is marked on its waveform."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from segue.app.context import Context
from segue.app.errors import told
from segue.app.models import run_of
from segue.app.takes import Ask, Edit, draw, edit, refuse_long
from segue.app.ui import gr
from segue.audio.read import read_header, read_sound
from segue.report.pictures import waveform_png, waveform_sec

_WAYS = [("Vary", "vary"), ("Replace a range", "replace"), ("Continue", "extend"), ("Loop", "loop")]


def edit_tab(context: Context) -> gr.Dropdown:
    """Lay out the tab; returns its list of models."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            upload = gr.Audio(sources=["upload"], type="filepath", label="Sound", elem_id="edit-upload",
                              editable=False, buttons=["download"])  # fmt: skip
            model = gr.Dropdown([], label="Model", elem_id="edit-model")
            prompt = gr.Textbox(label="Prompt", lines=2, elem_id="edit-prompt")
            negative = gr.Textbox(label="Negative prompt")
            way = gr.Radio(_WAYS, value="vary", label="What to do", elem_id="edit-way")
            strength = gr.Slider(0.05, 1, 0.5, step=0.05, label="Strength", info="1 keeps nothing of the sound")
            with gr.Row(visible=False) as marks:
                begin = gr.Number(0, label="From (s)", minimum=0)
                end = gr.Number(0, label="To (s)", minimum=0)
            longer = gr.Number(1, label="Seconds to add", minimum=0, visible=False)
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0)
                guidance = gr.Slider(1, 10, 2, step=0.1, label="Guidance (CFG)")
            with gr.Row():
                start = gr.Button("Edit", variant="primary", elem_id="edit-start", min_width=140)
                stop = gr.Button("Stop", min_width=90)
        with gr.Column(scale=3, min_width=380):
            gr.Markdown("Waveform: click where the range to replace begins, and where it ends.")
            outline = gr.Image(
                type="filepath", interactive=False, buttons=[], show_label=False, elem_id="edit-outline", min_width=100
            )
            words = gr.Markdown("", elem_id="edit-words")
            made = gr.Audio(
                type="filepath", interactive=False, buttons=["download"], label="Result", elem_id="edit-made"
            )
            with gr.Row():
                pictures = {"type": "filepath", "interactive": False, "buttons": ["fullscreen"], "show_label": False}
                with gr.Column(min_width=260):
                    gr.Markdown("Before")
                    before = gr.Image(**pictures)
                with gr.Column(min_width=260):
                    gr.Markdown("After")
                    after = gr.Image(**pictures)

    def outlined(path: str, begin: float, end: float, request: gr.Request) -> str:
        wave, rate_hz = read_sound(Path(path), 2 if read_header(Path(path)).channels == 2 else 1)
        marked = (begin, end) if end > begin else (begin, None) if begin else None
        folder = context.sessions.of(request.session_hash).new_folder()
        picture = folder / "waveform.png"
        picture.write_bytes(waveform_png(wave, rate_hz, marked_sec=marked))
        return str(picture)

    @told
    def loaded(path: str | None, request: gr.Request):
        if path is None:
            return None, None, None, None, 0, 0
        refuse_long(Path(path))
        picture = outlined(path, 0.0, 0.0, request)
        wave, rate_hz = read_sound(Path(path), 1)
        drawn = draw(np.asarray(wave), rate_hz, Path(picture).with_name("before.png"))
        return picture, str(drawn), None, None, 0, 0

    @told
    def clicked(path: str | None, begin: float, end: float, request: gr.Request, event: gr.SelectData):
        if path is None:
            return None, 0, 0
        place = round(waveform_sec(event.index[0], read_header(Path(path)).seconds), 3)
        # The first click begins a range, the second ends it, the third begins another.
        begin, end = (min(begin, place), max(begin, place)) if begin and not end else (place, 0.0)
        return outlined(path, begin, end, request), begin, end

    @told
    def change(
        upload: str | None,
        model: str,
        prompt: str,
        negative: str,
        way: str,
        strength: float,
        begin: float,
        end: float,
        longer: float,
        seed: float,
        guidance: float,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008
    ):
        if upload is None:
            raise gr.Error("No sound yet: drop a file into the field Sound.", print_exception=False)
        ask = Ask(prompt, negative or "", guidance=guidance, seed=int(seed or 0))
        wanted = Edit(way, strength, begin or 0.0, end or 0.0, longer or 0.0)
        session = context.sessions.of(request.session_hash)
        pipeline = context.models.pipeline(run_of(context.folders, model))
        stop = session.begin("edit")
        take = edit(pipeline, Path(upload), wanted, ask, model, session.new_folder(), stop,
                    lambda d, n: progress((d, n), unit="steps"))  # fmt: skip
        return ("Stopped.", None, None) if take is None else ("", str(take.path), str(take.picture))

    def fitting(way: str):
        return [gr.update(visible=way == name) for name in ("vary", "replace", "extend")]

    quiet = {"concurrency_limit": None, "show_progress": "hidden"}
    upload.change(loaded, upload, [outline, before, made, after, begin, end], **quiet)
    way.change(fitting, way, [strength, marks, longer], queue=False)
    outline.select(clicked, [upload, begin, end], [outline, begin, end], **quiet)
    asked = [upload, model, prompt, negative, way, strength, begin, end, longer, seed, guidance]
    start.click(change, asked, [words, made, after], concurrency_id="sounds", show_progress_on=words)

    def ended(request: gr.Request) -> None:
        context.sessions.of(request.session_hash).stop("edit")

    stop.click(ended, None, None, queue=False)
    return model
