"""The page: five tabs in one layout."""

from __future__ import annotations

from typing import Any

from segue.app.context import Context
from segue.app.edit_tab import edit_tab
from segue.app.generate_tab import NO_MODEL, generate_tab
from segue.app.models import SHIPPED, model_list
from segue.app.runs_tab import run_list, runs_tab
from segue.app.train_tab import train_tab
from segue.app.ui import gr
from segue.app.upsample_tab import upsample_tab

AT_ONCE = 3  # visitors whose sounds are made at the same time; others wait, and see their place in the queue
_KEPT_SEC = 24 * 3600
CSS = """
.segue-card, .segue-card .styler{background:var(--background-fill-primary)!important}
#segue-head p{margin:0;color:var(--body-text-color-subdued)}
"""


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system, so that none is fetched."""
    return gr.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    )


def build_page(context: Context, upload_mb: int) -> gr.Blocks:
    """The layout with its events, not yet served.

    Args:
        upload_mb: limit of an upload, which is said.
    """
    with gr.Blocks(title="segue", analytics_enabled=False, delete_cache=(3600, _KEPT_SEC)) as page:
        named = ", ".join(context.folders.name(root) for root in context.folders.roots)
        gr.Markdown(f"## segue\nFolders: {named}. Uploads up to {upload_mb} MB, seen by you alone and deleted when you "
                    "leave.", elem_id="segue-head")  # fmt: skip
        with gr.Tabs():
            with gr.Tab("Generate"):
                generator = generate_tab(context)
            with gr.Tab("Edit"):
                editor = edit_tab(context)
            with gr.Tab("Upsample"):
                resolver = upsample_tab(context)
            with gr.Tab("Runs"):
                runs = runs_tab(context)
            with gr.Tab("Train"):
                watched = train_tab(context)

        def opened():
            models, wide = (model_list(context.folders, task) for task in ("generation", "super-resolution"))
            all_runs = run_list(context)
            first: dict[str, Any] = {
                "choices": models,
                "value": models[0] if models else None,
                "info": "" if models else NO_MODEL,
            }
            return (
                gr.update(**first),
                gr.update(**first),
                # The shipped model of super-resolution is a good one: it comes first.
                gr.update(choices=wide, value=SHIPPED if SHIPPED in wide else wide[0] if wide else None),
                gr.update(choices=all_runs),
                gr.update(choices=all_runs),
            )

        def left(request: gr.Request) -> None:
            context.sessions.drop(request.session_hash)

        page.load(opened, None, [generator, editor, resolver, runs, watched], queue=False)
        page.unload(left)
    page.queue(default_concurrency_limit=AT_ONCE, api_open=False)
    return page
