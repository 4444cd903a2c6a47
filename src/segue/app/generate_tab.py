"""The tab Generate: prompts in, takes with players and spectrograms out."""

from __future__ import annotations

import secrets

from segue.app.context import Context
from segue.app.errors import told
from segue.app.models import run_of
from segue.app.takes import MOST_TAKES, Ask, Take, generate
from segue.app.ui import gr

NO_MODEL = "No text-to-audio model lies in the folders of this page: train one in the tab Train."


def generate_tab(context: Context) -> gr.Dropdown:
    """Lay out the tab; returns its list of models, which is filled when a page is opened."""
    with gr.Row():
        with gr.Column(scale=2, min_width=320):
            model = gr.Dropdown([], label="Model", elem_id="generate-model", info="Runs in the folders of this page.")
            prompt = gr.Textbox(label="Prompt", lines=2, placeholder="a soft violin playing C 5",
                                elem_id="generate-prompt")  # fmt: skip
            negative = gr.Textbox(label="Negative prompt", placeholder="what to keep away from")
            with gr.Row():
                seconds = gr.Number(0, label="Seconds", minimum=0, info="0: as the training clips")
                seed = gr.Number(0, label="Seed", precision=0, elem_id="generate-seed")
            with gr.Row():
                takes = gr.Slider(1, MOST_TAKES, 1, step=1, label="Takes")
                steps = gr.Slider(0, 100, 0, step=1, label="Steps", info="0: the model's own")
            guidance = gr.Slider(1, 10, 2, step=0.1, label="Guidance (CFG)", info="1: none")
            loop = gr.Checkbox(False, label="Loop", info="The end of each take meets its beginning.")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate-start", min_width=140)
                stop = gr.Button("Stop", min_width=90)
                another = gr.Button("New seed", min_width=90)
        with gr.Column(scale=3, min_width=380):
            words = gr.Markdown("", elem_id="generate-words")
            slots = [_slot(index) for index in range(MOST_TAKES)]

    @told
    def make(
        model: str,
        prompt: str,
        negative: str,
        seconds: float,
        seed: float,
        takes: float,
        steps: float,
        guidance: float,
        loop: bool,
        request: gr.Request,
        progress=gr.Progress(),  # noqa: B008
    ):
        ask = Ask(prompt, negative or "", seconds or 0.0, int(steps or 0), guidance, int(seed or 0), int(takes), loop)
        session = context.sessions.of(request.session_hash)
        yield "Loading the model ...", *_shown([])
        pipeline = context.models.pipeline(run_of(context.folders, model))
        stop = session.begin("generate")
        made: list[Take] = []
        yield "Generating ...", *_shown([])
        work = generate(pipeline, ask, model, session.new_folder(), stop, lambda d, n: progress((d, n), unit="steps"))
        for take in work:
            made.append(take)
            yield f"{len(made)} of {ask.takes} takes", *_shown(made)
        yield ("Stopped. " if stop.is_set() else "") + f"{len(made)} of {ask.takes} takes: {ask.prompt}", *_shown(made)

    asked = [model, prompt, negative, seconds, seed, takes, steps, guidance, loop]
    shown = [words, *(part for slot in slots for part in slot[:4])]
    event = {"inputs": asked, "outputs": shown, "concurrency_id": "sounds", "show_progress_on": words}
    gr.on([start.click, prompt.submit], make, **event)
    for *_, of_slot, again in slots:
        again.click(lambda value: (value, 1), of_slot, [seed, takes], queue=False).then(make, **event)
    another.click(lambda: secrets.randbelow(10**6), None, seed, queue=False)

    def end(request: gr.Request) -> None:
        context.sessions.of(request.session_hash).stop("generate")

    stop.click(end, None, None, queue=False)
    return model


def _slot(index: int) -> tuple:
    """Group, player, picture, seed and button of one take."""
    with gr.Group(visible=False, elem_classes="segue-card") as group:
        player = gr.Audio(
            type="filepath",
            interactive=False,
            buttons=["download"],
            elem_id=f"take-{index}",
        )
        picture = gr.Image(
            type="filepath", interactive=False, buttons=["fullscreen"], show_label=False, container=False
        )
        of_slot = gr.State(0)
        again = gr.Button("Again with this seed", size="sm")
    return group, player, picture, of_slot, again


def _shown(takes: list[Take]) -> list:
    """Updates of all slots: a take in each of the first ones."""
    updates: list = []
    for index in range(MOST_TAKES):
        if index < len(takes):
            take = takes[index]
            player = gr.update(value=str(take.path), label=f"seed {take.seed}")
            updates += [gr.update(visible=True), player, str(take.picture), take.seed]
        else:
            updates += [gr.update(visible=False), None, None, 0]
    return updates
