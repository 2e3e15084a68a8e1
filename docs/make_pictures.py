"""The pictures of the README: `python docs/make_pictures.py [CHROMIUM SCAN OTHER]` writes them beside this file.

`chest.png` is what `voxelfm picture` draws of a synthetic chest. With a browser and two scans, `page.png` is what a
visitor of `voxelfm space` sees after a click; the one in the repository shows Lung_Dx-A0002 (Lung-PET-CT-Dx, TCIA,
CC BY 4.0) and `ct_cropped.nii.gz` of TotalSegmentator (Apache-2.0).
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_nifti

DOCS = Path(__file__).parent
WIDTH = 900
COLOURS = 256


def shrink(source: Path, target: Path, box: tuple[float, float, float, float] = (0, 0, 1, 1)) -> None:
    """Writes a part of a picture (shares of its width and height) small."""
    picture = Image.open(source).convert("RGB")
    width, height = picture.size
    picture = picture.crop((int(box[0] * width), int(box[1] * height), int(box[2] * width), int(box[3] * height)))
    picture.thumbnail((WIDTH, 10_000), Image.Resampling.LANCZOS)
    # The octree keeps rare colours, such as those of marks.
    picture.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(target, optimize=True)
    print(f"{target} {target.stat().st_size / 1000:.0f} KB")


def main() -> None:
    with tempfile.TemporaryDirectory() as work:
        scan, drawn = Path(work, "chest.nii.gz"), Path(work, "chest.png")
        write_nifti(make_phantom(0).volume, scan)
        subprocess.run([sys.executable, "-m", "voxelfm_hf.cli", "picture", str(scan), "--out", str(drawn)], check=True)
        shrink(drawn, DOCS / "chest.png")
        if len(sys.argv) > 1:
            chromium, *scans = sys.argv[1:]
            browse = ["-m", "tests.library.browse_space", chromium, work, *scans]
            subprocess.run([sys.executable, *browse], check=True, cwd=DOCS.parent)
            shrink(Path(work, "likeness.png"), DOCS / "page.png", (0, 0, 1, 0.97))


if __name__ == "__main__":
    main()
