"""The page: drop a scan, scroll its planes, see what the model sees, click a place and find the like of it.

Run by `voxelfm space`, or as `app.py` of a Hub Space. Uploads are deleted once they are read; scans live in the memory
of a session and are dropped with it. Nothing is fetched from elsewhere.
"""

import html
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from voxelfm_hf.hub import EMBEDDED, load
from voxelfm_hf.picture_layers import WINDOWS_HU
from voxelfm_hf.picture_sheet import PLANES
from voxelfm_hf.space.scan import PageScan
from voxelfm_hf.space.uploads import MAX_UPLOAD_MB, read_upload
from voxelfm_hf.volumes.errors import VoxelFMError

logger = logging.getLogger(__name__)

LAYERS = {"scan": "scan", "patch features (PCA)": "features", "looks like the place clicked": "likeness"}
# Scans of people who left are dropped after this many seconds.
SESSION_SECONDS = 1800
MAX_WAITING = 20
INTRODUCTION = """# VoxelFM: what a CT foundation model sees

Drop a chest, abdomen or head-and-neck CT: NIfTI (.nii, .nii.gz), NRRD, MHA, or a zip of one DICOM series. Uploads are
deleted as soon as they are read. A head CT can show a face: upload only what you may share. Nothing here is a medical
device.
"""


class Page:
    """What the page needs, loaded once.

    Args:
        model: Folder, Hub id or "tiny".
        store: Feature store to search for similar scans.
        probe: Folder or Hub id of a probe.
        report: Folder or Hub id of a report generator.
    """

    def __init__(self, model: str = EMBEDDED, store: str | Path | None = None, probe: str | None = None):
        from voxelfm_hf.store import FeatureStore

        self.model, self.processor = load(model)
        self.index = self.reader = None
        if store is not None:
            from voxelfm_hf.eval.scan_index import ScanIndex
            from voxelfm_hf.hub import resolve_model, weight_hash

            opened = FeatureStore(store)
            if opened.run.get("weight_hash") != weight_hash(resolve_model(model)):
                raise VoxelFMError(
                    f"{store} holds features of other weights than {model}: embed its scans with {model}"
                )
            self.index = ScanIndex.of_store(opened)
        if probe is not None:
            from voxelfm_hf.eval.apply_probe import ProbeReader

            self.reader = ProbeReader(probe, model=model)

    def open(self, upload: str | None) -> Iterator[tuple[PageScan | None, str]]:
        """Reads an upload, first without and then with features; says what went wrong in one sentence."""
        if upload is None:
            yield None, ""
            return
        try:
            scan = PageScan.of(read_upload(upload))
            yield scan, f"{_facts(scan)} The model is looking at it..."
            scan.embed(self.model, self.processor)
            yield scan, f"{_facts(scan)} {scan.patches.shape[:3]} patches." if scan.patches is not None else ""
        except (VoxelFMError, ValueError) as error:
            yield None, f"**{html.escape(str(error))}**"
        except Exception as error:
            logger.exception("an upload failed")
            yield None, f"**this scan could not be shown ({type(error).__name__})**"

    def neighbours(self, scan: PageScan | None) -> list[list[Any]]:
        """Rows (id, cosine similarity) of the store's scans that are most like this one."""
        if self.index is None or scan is None or scan.cls is None:
            return []
        return [[match.id, round(match.similarity, 3)] for match in self.index.search(scan.cls, k=8)]

    def answer(self, scan: PageScan | None) -> dict[str, Any]:
        """What the probe says."""
        if self.reader is None or scan is None:
            return {}
        return self.reader.answer(scan.volume).facts()


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

    with gr.Blocks(title="VoxelFM", analytics_enabled=False, delete_cache=(600, 600)) as app:
        gr.Markdown(INTRODUCTION)
        with gr.Row():
            window = gr.Radio(list(WINDOWS_HU), value="soft tissue", label="Window", elem_id="window")
            layer = gr.Radio(list(LAYERS), value="scan", label="Over the scan", elem_id="layer")
        said = gr.Markdown("Click into a plane to see where the scans look alike.", elem_id="said")
        first, second = (_scan_block(gr, number, title) for number, title in ((1, "Scan"), (2, "Second scan")))
        for block, other in ((first, second), (second, first)):
            block["file"].upload(
                opened,
                [block["file"], window, layer],
                [block["scan"], block["facts"], *block["sliders"], *block["images"]],
                concurrency_limit=1,
                show_progress="minimal",
            ).then(lambda: None, None, block["file"])
            for plane in range(3):
                block["sliders"][plane].input(
                    scrolled(plane),
                    [block["scan"], block["sliders"][plane], window, layer],
                    block["images"],
                    show_progress="hidden",
                    trigger_mode="always_last",
                    concurrency_limit=4,
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
                    show_progress="hidden",
                    concurrency_limit=4,
                )
            for control in (window, layer):
                control.input(
                    pictures,
                    [block["scan"], window, layer],
                    block["images"],
                    show_progress="hidden",
                    concurrency_limit=4,
                )
        if page.index is not None:
            similar = gr.Dataframe(headers=["scan in the store", "cosine similarity"], interactive=False)
            gr.Button("Most similar scans in the store", elem_id="neighbours").click(
                page.neighbours, first["scan"], similar
            )
        if page.reader is not None:
            answer = gr.JSON(label="The probe's answer")
            gr.Button("Ask the probe", elem_id="probe").click(page.answer, first["scan"], answer, concurrency_limit=1)
    return app


def _scan_block(gr, number: int, title: str) -> dict[str, Any]:
    """Upload, facts, planes and sliders of one scan."""
    with gr.Group():
        with gr.Row():
            file = gr.File(label=title, type="filepath", height=110, elem_id=f"file{number}", scale=1)
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
    return {"file": file, "facts": facts, "images": images, "sliders": sliders, "scan": scan}


def _facts(scan: PageScan) -> str:
    """Size, spacing and what was repaired; nothing from the header's text."""
    volume = scan.volume
    size = " x ".join(str(n) for n in volume.hu.shape)
    spacing = " x ".join(f"{s:.2f}" for s in volume.spacing)
    notes = "".join(f" Note: {html.escape(note)}." for note in volume.notes)
    return f"{size} voxels of {spacing} mm (z, y, x).{notes}"


def serve(page: Page, *, host: str = "127.0.0.1", port: int | None = None, **options) -> Any:
    """Starts the page; options go to gradio's `launch`."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    app = build(page)
    import gradio as gr

    # Gradio's own themes fetch their fonts from the web.
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    app.queue(max_size=MAX_WAITING)
    return app.launch(
        server_name=host,
        server_port=port,
        theme=theme,
        max_file_size=f"{MAX_UPLOAD_MB}mb",
        footer_links=[],
        ssr_mode=False,
        share=False,
        **options,
    )


if __name__ == "__main__":
    serve(Page(os.environ.get("VOXELFM_MODEL", EMBEDDED)), host="0.0.0.0")
