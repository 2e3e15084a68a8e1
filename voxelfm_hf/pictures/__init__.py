"""Pictures of scans for people: planes in CT windows, with label maps, heat maps and patch features as colour."""

from voxelfm_hf.pictures.planes import body_centre, picture_planes, save_figure, save_picture, slice_image

__all__ = ["body_centre", "picture_planes", "save_figure", "save_picture", "slice_image"]
