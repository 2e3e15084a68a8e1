"""A scan on the page: its volume and patch features, its planes as pictures, and where it looks like a given place."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from voxelfm_hf.data.measure import body_region
from voxelfm_hf.features.likeness import Box, likeness, patch_at, patch_box, patch_centre
from voxelfm_hf.features.tiles import encode
from voxelfm_hf.modeling.image_processing_voxelfm import VoxelFMGeometry
from voxelfm_hf.pictures import body_centre, slice_image
from voxelfm_hf.pictures.layers import WINDOWS_HU, FeatureLayer, PatchHeatLayer
from voxelfm_hf.pictures.sheet import PLANES
from voxelfm_hf.volumes import Volume

PICTURE_PX = 460  # longer side of a plane
MARK_COLOUR = (255, 180, 84)


@dataclass(eq=False)
class PageScan:
    """A scan and what the model sees in it.

    Attributes:
        volume: The scan.
        patches: (d, h, w, C) patch features; None until the model has run.
        cls: (C,) CLS vector.
        geometry: Where the patches lie in the volume.
        position: Voxel (z, y, x) that the planes pass through.
        colours: Principal components of the patches as a layer.
        likeness: Similarity of every patch to the place that was clicked, as a layer.
    """

    volume: Volume
    position: tuple[int, int, int]
    patches: np.ndarray | None = None
    cls: np.ndarray | None = None
    geometry: VoxelFMGeometry | None = None
    colours: FeatureLayer | None = None
    likeness: PatchHeatLayer | None = None

    @classmethod
    def of(cls, volume: Volume) -> "PageScan":
        """A scan without features, looked at in the middle of the body."""
        return cls(volume, body_centre(volume.hu))

    def embed(self, model: Any, processor: Any) -> None:
        """Runs the model."""
        prepared = processor(self.volume, return_geometry=True)
        vectors, grids = encode(model, prepared["pixel_values"].to(model.device))
        self.geometry = prepared["geometry"][0]
        self.cls, self.patches = vectors[0].cpu().numpy(), grids[0].cpu().numpy()
        self.colours = FeatureLayer(self.patches, self.volume.hu, box=self._box)

    def covers_head(self) -> bool:
        """Whether the head seems to be in the scan, whose surface can show a face."""
        return "head" in body_region(self.volume.hu, self.volume.spacing).split("+")

    @property
    def _box(self) -> Box:
        assert self.geometry is not None
        return patch_box(self.geometry)

    def picture(self, plane: int, window: str, layer: str) -> np.ndarray:
        """One plane through the position as RGB (rows, columns, 3) uint8, one scale in mm along both axes.

        Args:
            plane: Number in `PLANES`.
            window: Name in `WINDOWS_HU`.
            layer: "scan", "features" or "likeness".
        """
        from PIL import Image, ImageDraw

        shown = {"features": self.colours, "likeness": self.likeness}.get(layer)
        view = PLANES[plane]
        colours = slice_image(
            self.volume, view, self.position[view.axis], WINDOWS_HU[window], [shown] if shown is not None else []
        )
        image = Image.fromarray((np.clip(colours, 0, 1) * 255).astype(np.uint8))
        image = image.resize(self._size(plane), Image.Resampling.BILINEAR)
        across, down = self._pixel(plane)
        drawing = ImageDraw.Draw(image)
        width, height = image.size
        for gap in (14, 4):  # a cross with an open middle
            drawing.line([(across - gap, down), (across - gap + 8, down)], fill=MARK_COLOUR)
            drawing.line([(across + gap - 8, down), (across + gap, down)], fill=MARK_COLOUR)
            drawing.line([(across, down - gap), (across, down - gap + 8)], fill=MARK_COLOUR)
            drawing.line([(across, down + gap - 8), (across, down + gap)], fill=MARK_COLOUR)
        left, right, top, bottom = list(view.letters)
        for letter, place in (
            (left, (4, height / 2 - 6)),
            (right, (width - 12, height / 2 - 6)),
            (top, (width / 2 - 4, 2)),
            (bottom, (width / 2 - 4, height - 14)),
        ):
            drawing.text(place, letter, fill=(201, 209, 217))
        return np.asarray(image)

    def _size(self, plane: int) -> tuple[int, int]:
        view, spacing, shape = PLANES[plane], self.volume.spacing, self.volume.hu.shape
        width, height = shape[view.columns] * spacing[view.columns], shape[view.rows] * spacing[view.rows]
        scale = PICTURE_PX / max(width, height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _pixel(self, plane: int) -> tuple[int, int]:
        """Where the position lies in the picture of a plane: (across, down)."""
        view, shape, (width, height) = PLANES[plane], self.volume.hu.shape, self._size(plane)
        across = (self.position[view.columns] + 0.5) / shape[view.columns] * width
        down = (self.position[view.rows] + 0.5) / shape[view.rows] * height
        return round(across), round(height - down if view.rows == 0 else down)

    def move_to_pixel(self, plane: int, across: float, down: float) -> None:
        """Moves the position to a pixel of a plane's picture."""
        view, shape, (width, height) = PLANES[plane], self.volume.hu.shape, self._size(plane)
        down = height - down if view.rows == 0 else down
        moved = list(self.position)
        for axis, share in ((view.columns, across / width), (view.rows, down / height)):
            moved[axis] = int(np.clip(np.floor(share * shape[axis]), 0, shape[axis] - 1))
        self.position = (moved[0], moved[1], moved[2])

    def vector_here(self) -> np.ndarray | None:
        """(C,) feature of the patch at the position; None outside the part of the scan that the model saw."""
        if self.patches is None:
            return None
        patch = patch_at(self.position, self.patches.shape[:3], self._box)
        return None if patch is None else self.patches[patch]

    def liken(self, vector: np.ndarray) -> float:
        """Shows how like a feature vector every patch is, and returns the highest cosine similarity."""
        assert self.patches is not None
        similarity = likeness(self.patches, vector)
        self.likeness = PatchHeatLayer(similarity, self.volume.hu.shape, box=self._box, limits=(0.2, 1.0))
        return float(similarity.max())

    def move_to_likest(self) -> None:
        """Moves the position to the centre of the patch that is most like the place clicked."""
        assert self.likeness is not None
        grid = self.likeness.values.shape
        best = np.unravel_index(int(self.likeness.values.argmax()), grid)
        z, y, x = (round(c) for c in patch_centre([int(i) for i in best], grid, self._box))
        self.position = (z, y, x)
