"""The page: drop a scan, scroll its planes, see what the model sees, click a place and find the like of it.

Run by `voxelfm space`, or as `app.py` of a Hub Space. Uploads are deleted once they are read; scans live in the memory
of a session and are dropped with it. Nothing is fetched from elsewhere.
"""

import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.hub import EMBEDDED
from voxelfm_hf.pictures.layers import WINDOWS_HU
from voxelfm_hf.pictures.sheet import PLANES
from voxelfm_hf.space.limits import CLAIM_SECONDS, MAX_WAITING, SESSION_SECONDS
from voxelfm_hf.space.page import Page
from voxelfm_hf.space.scan import PageScan
from voxelfm_hf.space.uploads import FOLDER_PREFIX
from voxelfm_hf.volumes.errors import VoxelFMError
from voxelfm_hf.volumes.find import format_ending
from voxelfm_hf.volumes.formats import SINGLE_FILES

LAYERS = {"scan": "scan", "patch features (PCA)": "features", "looks like the place clicked": "likeness"}
# What computes for long, of all users together: one at a time.
HEAVY: dict[str, Any] = {"concurrency_id": "heavy", "concurrency_limit": 1}
LIGHT: dict[str, Any] = {"concurrency_limit": 4, "show_progress": "hidden"}
INTRODUCTION = f"""# VoxelFM: what a CT foundation model sees

Drop a chest, abdomen or head-and-neck CT: one file ({", ".join(SINGLE_FILES)}) or a zip of one DICOM series. Uploads
are deleted as soon as they are read. A head CT can show a face: upload only what you may share. Nothing here is a
medical device.
"""


def build(page: Page):
    """The Gradio app of a page.

    Raises:
        VoxelFMError: gradio is not installed.
    """
    try:
        import gradio as gr
    except ImportError:
        raise VoxelFMError("the page needs gradio: pip install 'voxelfm-hf[space]'") from None

    def pictures(scan: PageScan | None, window: str, layer: str) -> list[np.ndarray | None]:
        return [None if scan is None else scan.picture(plane, window, LAYERS[layer]) for plane in range(3)]

    def sliders(scan: PageScan | None) -> list[Any]:
        if scan is None:
            return [gr.update() for _ in PLANES]
        return [
            gr.update(maximum=scan.volume.hu.shape[view.axis] - 1, value=scan.position[view.axis]) for view in PLANES
        ]

    def opened(upload, window, layer):
        for scan, said in page.open(upload):
            yield scan, said, *sliders(scan), *pictures(scan, window, layer)

    def scrolled(plane: int) -> Callable:
        def scroll(scan, index, window, layer):
            if scan is None:
                return [None] * len(PLANES)
            moved = list(scan.position)
            moved[PLANES[plane].axis] = int(np.clip(index, 0, scan.volume.hu.shape[PLANES[plane].axis] - 1))
            scan.position = tuple(moved)
            return pictures(scan, window, layer)

        return scroll

    def clicked(plane: int) -> Callable:
        def click(scan, other, window, event: gr.SelectData):
            if scan is None:
                return [gr.update()] * 14
            scan.move_to_pixel(plane, *event.index)
            vector = scan.vector_here()
            if vector is None:
                layer, said = "scan", "The model did not see this place: it lies outside the body or was cropped away."
            else:
                layer = "looks like the place clicked"
                scan.liken(vector)
                said = "Bright: patches most like the place clicked."
                if other is not None and other.patches is not None:
                    highest = other.liken(vector)
                    other.move_to_likest()
                    said += f" The second scan shows its likest place (cosine similarity {highest:.2f})."
            first = [*sliders(scan), *pictures(scan, window, layer)]
            second = [*sliders(other), *pictures(other, window, layer)]
            return [said, layer, *first, *second]

        return click

    with gr.Blocks(title="VoxelFM", analytics_enabled=False, delete_cache=(60, 120)) as app:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            window = gr.Radio(list(WINDOWS_HU), value="soft tissue", label="Window", elem_id="window")
            layer = gr.Radio(list(LAYERS), value="scan", label="Over the scan", elem_id="layer")
        said = gr.Markdown("Click into a plane to see where the scans look alike.", elem_id="said")
        first, second = (_scan_block(gr, number, title) for number, title in ((1, "Scan"), (2, "Second scan")))
        for block, other in ((first, second), (second, first)):
            block["file"].upload(claim_upload, block["file"], [block["file"], block["upload"]], queue=False).then(
                opened,
                [block["upload"], window, layer],
                [block["scan"], block["facts"], *block["sliders"], *block["images"]],
                show_progress="minimal",
                **HEAVY,
            )
            for plane in range(3):
                block["sliders"][plane].input(
                    scrolled(plane),
                    [block["scan"], block["sliders"][plane], window, layer],
                    block["images"],
                    trigger_mode="always_last",
                    **LIGHT,
                )
                block["images"][plane].select(
                    clicked(plane),
                    [block["scan"], other["scan"], window],
                    [
                        said,
                        layer,
                        *block["sliders"],
                        *block["images"],
                        *other["sliders"],
                        *other["images"],
                    ],
                    **LIGHT,
                )
            for control in (window, layer):
                control.input(
                    pictures,
                    [block["scan"], window, layer],
                    block["images"],
                    **LIGHT,
                )
        if page.index is not None:
            similar = gr.Dataframe(
                headers=["scan in the store", "cosine similarity"], interactive=False, elem_id="similar"
            )
            gr.Button("Most similar scans in the store", elem_id="neighbours").click(
                page.neighbours, first["scan"], similar
            )
        if page.reader is not None:
            answer = gr.JSON(label="The probe's answer", elem_id="answer")
            gr.Button("Ask the probe", elem_id="probe").click(page.answer, first["scan"], answer, **HEAVY)
        if page.writer is not None:
            # A text box shows text: a model may write what Markdown would turn into links and pictures.
            text = gr.Textbox(label="Written by the report model, not for clinical use", elem_id="text", lines=6)
            findings = gr.Dataframe(
                headers=["finding", "in the text", "probability", "probe"], interactive=False, elem_id="findings"
            )
            gr.Button("Write a report", elem_id="report").click(page.report, first["scan"], [text, findings], **HEAVY)
    return app


def _scan_block(gr, number: int, title: str) -> dict[str, Any]:
    """Upload, facts, planes and sliders of one scan."""
    with gr.Column():
        with gr.Row():
            file = gr.File(label=title, type="filepath", height=150, elem_id=f"file{number}", scale=1)
            facts = gr.Markdown("", elem_id=f"facts{number}")
        with gr.Row():
            images, sliders = [], []
            for view in PLANES:
                with gr.Column(min_width=240):
                    images.append(
                        gr.Image(
                            label=view.name,
                            format="png",
                            interactive=False,
                            buttons=[],
                            elem_id=f"{view.name}{number}",
                        )
                    )
                    sliders.append(
                        gr.Slider(
                            0,
                            1,
                            step=1,
                            label=f"{view.name} slice",
                            show_label=False,
                            elem_id=f"slice-{view.name}{number}",
                        )
                    )
    scan = gr.State(None, time_to_live=SESSION_SECONDS)
    upload = gr.State(None, time_to_live=SESSION_SECONDS, delete_callback=_forget_upload)
    return {"file": file, "facts": facts, "images": images, "sliders": sliders, "scan": scan, "upload": upload}


def claim_upload(upload: str | None) -> tuple[None, str | None]:
    """Gives an upload a place of its own, empties the field, and has gradio's copy deleted.

    Gradio names uploads by their content: two people with the same file share one, so that it may not go at once.
    """
    if upload is None or not Path(upload).is_file():
        return None, upload
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir=os.environ.get("GRADIO_TEMP_DIR")))
    own = folder / f"scan{format_ending(upload)}"
    try:
        own.hardlink_to(upload)
    except OSError:
        shutil.copyfile(upload, own)
    _delete_later(upload)
    return None, str(own)


def _delete_later(upload: str) -> None:
    """Deletes gradio's copy of an upload once nobody can be about to claim it."""

    def sweep() -> None:
        path = Path(upload)
        if not path.exists():
            return
        if time.time() - path.stat().st_mtime < CLAIM_SECONDS:
            _delete_later(upload)  # it came a second time
        else:
            shutil.rmtree(path.parent, ignore_errors=True)

    timer = threading.Timer(CLAIM_SECONDS, sweep)
    timer.daemon = True
    timer.start()


def _forget_upload(upload: str | None) -> None:
    """Deletes an upload whose owner left before it was read."""
    if upload is not None:
        shutil.rmtree(Path(upload).parent, ignore_errors=True)


def serve(page: Page, *, host: str = "127.0.0.1", port: int | None = None) -> Any:
    """Starts the page and returns at once: `local_url` of the result says where, `block_thread()` waits for Ctrl+C."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    # Uploads, until they are read, and pictures of slices lie where no other user of the machine can look.
    folder = tempfile.TemporaryDirectory(prefix="voxelfm-page-")
    os.environ["GRADIO_TEMP_DIR"] = folder.name
    app = build(page)
    app.folder = folder
    import gradio as gr

    # Gradio's own themes fetch their fonts from the web.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app.queue(max_size=MAX_WAITING)
    app.launch(
        server_name=host,
        server_port=port,
        theme=theme,
        max_file_size=f"{page.limits.upload_mb}mb",
        footer_links=[],
        ssr_mode=False,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
    )
    return app


def stop_as_by_keyboard() -> None:
    """Makes a polite kill end as Ctrl+C does, so that the page's temporary folder goes too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def page_of_environment() -> Page:
    """The page of a Hub Space, which is told by variables what to show."""

    def named(what: str) -> str | None:
        return os.environ.get(f"VOXELFM_{what}") or None

    return Page(named("MODEL") or EMBEDDED, named("STORE"), named("PROBE"), named("REPORT"))


if __name__ == "__main__":
    stop_as_by_keyboard()
    serve(page_of_environment(), host="0.0.0.0").block_thread()
