"""`voxelfm demo`: the main job end to end on a synthetic CT, with the model inside the package."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.features import EmbedOptions, Task, embed_scans, embed_volume
from voxelfm_hf.files import written_folder
from voxelfm_hf.hub import embedded_model, load
from voxelfm_hf.pictures import save_picture
from voxelfm_hf.scan_list import list_scans
from voxelfm_hf.store import FeatureStore
from voxelfm_hf.volumes import read_volume
from voxelfm_hf.volumes.errors import VoxelFMError


def run_demo(out: str | Path, *, seed: int = 0, say: Callable[[str], None] = print) -> Path:
    """Makes a synthetic scan, embeds it from NIfTI and from DICOM, compares and draws.

    Args:
        out: Folder for `scans/`, `features/` and `picture.png`; what is there is used again.
        seed: Which synthetic patient.
        say: Receives the lines a user reads.

    Returns:
        The folder.

    Raises:
        VoxelFMError: the two formats do not give the same features, or the folder cannot be written.
    """
    out = Path(out)
    scans = out / f"scans-{seed}"
    if not scans.is_dir():
        phantom = make_phantom(seed)
        with written_folder(scans) as folder:
            write_nifti(phantom.volume, folder / "phantom.nii.gz")
            write_dicom_series(phantom.volume, folder / "phantom_dicom", seed=seed)
    say(f"synthetic chest CT as NIfTI and DICOM: {scans}")

    model = embedded_model()
    store = out / f"features-{seed}"
    embed_scans([Task(scan) for scan in list_scans([scans])], model, store, EmbedOptions(patches=True))
    dicom, nifti = FeatureStore(store).cls
    if not np.array_equal(dicom, nifti):
        raise VoxelFMError(f"{store}: NIfTI and DICOM gave different features of the same scan, please report it")
    say(f"features of both, equal bit for bit: {store}")

    network, processor = load(model)
    volume = read_volume(scans / "phantom.nii.gz")
    grid, geometry = embed_volume(network, processor, volume)
    picture = save_picture(
        volume,
        out / f"picture-{seed}.png",
        patch_features=grid,
        patch_box=(geometry.region_start, geometry.region_stop),
        title="synthetic chest CT",
    )
    say(f"picture: {picture}")
    say(
        "\nnext, with your own scans:\n"
        "  voxelfm info SCAN                      what a file is\n"
        "  voxelfm picture SCAN --out scan.png    look at it\n"
        "  voxelfm embed SCANS --out STORE        features of a folder of scans"
    )
    return out
