"""The tab Runs: run folders side by side."""

from __future__ import annotations

from segue.app.context import Context
from segue.app.errors import told
from segue.app.folders import task_of
from segue.app.runs import MOST_RUNS, runs_html
from segue.app.ui import gr
from segue.types import UserError


def run_list(context: Context) -> list[str]:
    """Names of all runs in the folders, the newest first."""
    return [context.folders.name(run) for run in context.folders.runs()]


def runs_tab(context: Context) -> gr.Dropdown:
    """Lay out the tab; returns its list of runs."""
    with gr.Row(equal_height=True):
        chosen = gr.Dropdown([], multiselect=True, max_choices=MOST_RUNS, label="Runs", scale=5, elem_id="runs-chosen",
                             info="Curves, stages and sounds of the chosen ones, side by side.")  # fmt: skip
        show = gr.Button("Show", variant="primary", elem_id="runs-show", min_width=100)
        again = gr.Button("Look for new runs", min_width=100)
    shown = gr.HTML("", elem_id="runs-shown")

    @told
    def drawn(names: list[str] | None) -> str:
        runs = {name: context.folders.inside(name) for name in names or []}
        for name, run in runs.items():
            if task_of(run) is None:
                raise UserError(f"{name}: no run there any more; hint: Look for new runs")
        return runs_html(runs)

    show.click(drawn, chosen, shown)
    again.click(lambda: gr.update(choices=run_list(context)), None, chosen, queue=False)
    return chosen
