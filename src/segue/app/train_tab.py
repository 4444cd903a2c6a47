"""The tab Train: a folder of sounds, what is in it, a recipe, what it needs, and the run as it goes."""

from __future__ import annotations

from segue.app.context import Context
from segue.app.errors import told
from segue.app.runs import live_html
from segue.app.runs_tab import run_list
from segue.app.training import CAPTIONS, SOUNDS, Order, check, plan, resume, start, status
from segue.app.ui import gr
from segue.models.presets import PRESETS
from segue.recipes import DEFAULT_RECIPE, RECIPES

_EVERY_SEC = 3.0


def train_tab(context: Context) -> gr.Dropdown:
    """Lay out the tab; returns its list of runs."""
    about = {name: " ".join((make.__doc__ or "").split()) for name, make in RECIPES.items()}
    with gr.Row():
        with gr.Column(scale=2, min_width=340):
            source = gr.Textbox(label="Folder of sounds, or a latent cache", elem_id="train-source",
                                placeholder=context.folders.name(context.folders.roots[0]))  # fmt: skip
            with gr.Row():
                captions = gr.Radio(CAPTIONS, value="filename", label="Captions", info="manifest: they come with "
                                    "the data; filename: from the files' names")  # fmt: skip
                sound = gr.Radio(list(SOUNDS), value=next(iter(SOUNDS)), label="Sound")
            look = gr.Button("Check the sounds", elem_id="train-check")
            recipe = gr.Dropdown(list(RECIPES), value=DEFAULT_RECIPE, label="Recipe", info=about[DEFAULT_RECIPE],
                                 elem_id="train-recipe")  # fmt: skip
            with gr.Row():
                name = gr.Textbox("my-run", label="Name of the run", elem_id="train-name")
                examples = gr.Number(0, label="Examples", precision=0, minimum=0, info="0: the recipe's length",
                                     elem_id="train-examples")  # fmt: skip
                preset = gr.Dropdown(["", *PRESETS], value="", label="Size", info="empty: the recipe's")
            more = gr.Textbox(label="More settings", placeholder="train.batch_size=16 optim.kind=muon",
                              elem_id="train-more")  # fmt: skip
            with gr.Row():
                need = gr.Button("What it needs", elem_id="train-plan")
                begin = gr.Button("Start", variant="primary", elem_id="train-start")
        with gr.Column(scale=3, min_width=380):
            found = gr.HTML("", elem_id="train-found")
            with gr.Row(equal_height=True):
                watched = gr.Dropdown([], label="Run to watch", elem_id="train-watched", scale=3)
                halt = gr.Button("Stop", elem_id="train-stop", min_width=80)
                further = gr.Button("Resume", elem_id="train-resume", min_width=80)
            words = gr.Markdown("", elem_id="train-words")
            live = gr.HTML("", elem_id="train-live")
    before = gr.State("")
    timer = gr.Timer(_EVERY_SEC)
    asked = [source, captions, sound, recipe, name, examples, preset, more]

    def order_of(
        source: str, captions: str, sound: str, recipe: str, name: str, examples: float, preset: str, more: str
    ) -> Order:
        # A field that was emptied is None.
        return Order(source or "", captions, sound, recipe, name or "", int(examples or 0), preset or "", more or "")

    @told
    def checked(source: str, captions: str, request: gr.Request) -> str:
        return check(context.folders, source, captions, context.sessions.of(request.session_hash).begin("check"))

    @told
    def planned(
        source: str, captions: str, sound: str, recipe: str, name: str, examples: float, preset: str, more: str,
        request: gr.Request,
    ) -> str:  # fmt: skip
        order = order_of(source, captions, sound, recipe, name, examples, preset, more)
        return plan(context.folders, order, context.sessions.of(request.session_hash).begin("plan"))

    @told
    def begun(*values):
        job = start(context.folders, context.jobs, order_of(*values))
        return _watching(context, context.folders.name(job.run)), ""

    @told
    def resumed(run: str | None):
        job = resume(context.folders, context.jobs, run or "")
        return _watching(context, context.folders.name(job.run)), ""

    @told
    def halted(run: str | None) -> str:
        folder = context.folders.inside(run or "")
        context.jobs.stop(folder)
        return f"{context.folders.name(folder)}: saving ..."

    def tick(run: str | None, before: str):
        if not run:
            return gr.skip(), gr.skip(), gr.skip()
        folder = context.folders.inside(run)
        log, sounds = folder / "log.jsonl", folder / "samples"
        changed = [str(path.stat().st_mtime_ns) for path in (log, sounds) if path.exists()]
        now = " ".join([run, *changed])
        # Pictures are drawn anew only where there is something new to draw.
        new = live_html(folder) if now != before else gr.skip()
        return status(context.folders, context.jobs, folder), new, now

    look.click(checked, [source, captions], found)
    need.click(planned, asked, found)
    quiet = {"concurrency_limit": None, "show_progress": "hidden"}
    begin.click(begun, asked, [watched, before], **quiet)
    further.click(resumed, watched, [watched, before], **quiet)
    halt.click(halted, watched, words, **quiet)
    recipe.change(lambda name: gr.update(info=about.get(name, "")), recipe, recipe, queue=False)
    timer.tick(told(tick), [watched, before], [words, live, before], **quiet)
    return watched


def _watching(context: Context, run: str):
    """The list of runs with one chosen, which need not have a folder yet."""
    return gr.update(choices=list(dict.fromkeys([run, *run_list(context)])), value=run)
