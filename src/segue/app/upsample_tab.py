"""The tab Upsample: files in, the same with their missing upper band out, before and after side by side."""

from __future__ import annotations

from pathlib import Path

from segue.app.context import Context
from segue.app.errors import told
from segue.app.ui import gr
from segue.app.wider import Pair, upsample

MOST_SHOWN = 4  # pairs with players; all outputs can be downloaded
MOST_FILES = 50


def upsample_tab(context: Context) -> gr.Dropdown:
    """Lay out the tab; returns its list of models."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            uploads = gr.File(file_count="multiple", type="filepath", label="Sounds", elem_id="upsample-files")
            model = gr.Dropdown([], label="Model", elem_id="upsample-model")
            with gr.Row():
                cutoff = gr.Number(0, label="Cutoff (Hz)", minimum=0, info="0: it is found")
                steps = gr.Slider(0, 50, 0, step=1, label="Steps", info="0: the model's own; more: diffusion")
                seed = gr.Number(0, label="Seed", precision=0)
            with gr.Row():
                start = gr.Button("Upsample", variant="primary", elem_id="upsample-start", min_width=140)
                stop = gr.Button("Stop", min_width=90)
            outputs = gr.File(file_count="multiple", interactive=False, label="Results", elem_id="upsample-results")
        with gr.Column(scale=3, min_width=380):
            words = gr.Markdown("", elem_id="upsample-words")
            slots = [_slot(index) for index in range(MOST_SHOWN)]

    @told
    def make(
        files: list[str] | None,
        model: str,
        cutoff: float,
        steps: float,
        seed: float,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008
    ):
        if not files:
            raise gr.Error("No sounds yet: drop files into the field Sounds.", print_exception=False)
        if len(files) > MOST_FILES:
            raise gr.Error(f"{len(files)} files: give at most {MOST_FILES} here, or use segue upsample.",
                           print_exception=False)  # fmt: skip
        session = context.sessions.of(request.session_hash)
        yield "Loading the model ...", None, *_shown([])
        resolver = context.models.resolver(context.folders, model, int(steps or 0) or None)
        stop = session.begin("upsample")
        pairs: list[Pair] = []
        work = upsample(resolver, [Path(file) for file in files], session.new_folder(), stop,
                        lambda done, all_: progress((round(done, 1), round(all_, 1)), unit="s of sound"),
                        cutoff_hz=cutoff or None, steps=int(steps or 0) or None, seed=int(seed or 0))  # fmt: skip
        for pair in work:
            pairs.append(pair)
            made = [str(p.after) for p in pairs if p.after is not None]
            yield f"{len(pairs)} of {len(files)} files", made, *_shown(pairs)
            if pair.after is None:
                gr.Warning(pair.words, title="Left out")
        made = [str(p.after) for p in pairs if p.after is not None]
        failed = len(pairs) - len(made)
        told_so = f"{len(made)} of {len(files)} files" + (f", {failed} could not be used" if failed else "")
        yield ("Stopped. " if stop.is_set() else "") + told_so, made, *_shown(pairs)

    shown = [words, outputs, *(part for slot in slots for part in slot)]
    asked = [uploads, model, cutoff, steps, seed]
    start.click(make, asked, shown, concurrency_id="sounds", show_progress_on=words)

    def end(request: gr.Request) -> None:
        context.sessions.of(request.session_hash).stop("upsample")

    stop.click(end, None, None, queue=False)
    return model


def _slot(index: int) -> tuple:
    """Group, words, the row of players, two players and two pictures of one pair."""
    with gr.Group(visible=False, elem_classes="segue-card") as group:
        words = gr.Markdown("", padding=True)
        with gr.Row() as players:
            with gr.Column(min_width=260):
                before = gr.Audio(
                    type="filepath", interactive=False, buttons=["download"], label="Before", elem_id=f"before-{index}"
                )
                picture = gr.Image(
                    type="filepath", interactive=False, buttons=["fullscreen"], show_label=False, container=False
                )
            with gr.Column(min_width=260):
                after = gr.Audio(
                    type="filepath", interactive=False, buttons=["download"], label="After", elem_id=f"after-{index}"
                )
                picture_after = gr.Image(
                    type="filepath", interactive=False, buttons=["fullscreen"], show_label=False, container=False
                )
    return group, words, players, before, after, picture, picture_after


def _shown(pairs: list[Pair]) -> list:
    updates: list = []
    for index in range(MOST_SHOWN):
        pair = pairs[index] if index < len(pairs) else None
        if pair is None or pair.after is None:
            words = f"**{pair.name}** cannot be used. {pair.words}" if pair else ""
            updates += [gr.update(visible=pair is not None), words, gr.update(visible=False), None, None, None, None]
        else:
            drawn = [str(picture) for picture in pair.pictures]
            words = f"**{pair.name}**: {pair.words}"
            shown = gr.update(visible=True)
            updates += [shown, words, shown, str(pair.before), str(pair.after), *drawn]
    return updates
