"""Damages scans of every format at random: reading must give a volume or a VoxelFMError, in bounded time and memory.

Long runs: `python tests/volumes/fuzz_readers.py --count 5000 --seed 1`; each batch runs in a process with limits.
`--only jls.dcm j2k.dcm tiles.dcm rle.dcm jpeg.dcm` damages compressed pixels only.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import io
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

import numpy as np

MEMORY_LIMIT = 4 << 30
SECONDS_PER_MUTANT = 20
BATCH = 50
PIXEL_DATA = b"\xe0\x7f\x10\x00"
STREAMS = ("rle.dcm", "j2k.dcm", "tiles.dcm", "jls.dcm", "jpeg.dcm")


def make_seeds(folder: Path, writers: ModuleType) -> dict[str, bytes]:
    """Small good files of all formats: name -> content."""
    import nibabel as nib
    import pydicom
    import SimpleITK as sitk
    from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

    hu = writers.ct_array((5, 34, 33))
    image = writers.nifti_of(hu, "RAS")
    nib.save(image, folder / "plain.nii")
    nib.save(image, folder / "packed.nii.gz")
    nib.save(nib.Nifti2Image(np.asarray(image.dataobj), image.affine), folder / "two.nii")
    nib.save(writers.nifti_of(hu + 0.5, "PIR"), folder / "float.nii")
    for suffix in ("nrrd", "mha"):
        sitk.WriteImage(writers.lps_image(hu), str(folder / f"plain.{suffix}"))
        sitk.WriteImage(writers.lps_image(hu), str(folder / f"packed.{suffix}"), True)
    np.save(folder / "array.npy", hu)
    stored = (hu + 1024).astype("<u2")
    writers.dicom_slice(stored[0], (0, 0, 0), RescaleIntercept=-1024, SOPInstanceUID="1.2.3.6").save_as(
        folder / "slice.dcm", enforce_file_format=True
    )
    writers.enhanced_ct(hu).save_as(folder / "frames.dcm", enforce_file_format=True)
    for name, syntax in (("rle", RLELossless), ("j2k", JPEG2000Lossless), ("jls", JPEGLSLossless)):
        item = pydicom.dcmread(folder / "slice.dcm")
        try:
            item.compress(syntax, generate_instance_uid=False)
        except (RuntimeError, NotImplementedError):
            continue  # the encoder is an optional test dependency
        item.save_as(folder / f"{name}.dcm")
    item = pydicom.dcmread(folder / "slice.dcm")
    item.file_meta.TransferSyntaxUID = JPEG2000Lossless
    item.PixelData = pydicom.encaps.encapsulate([jpeg2000_in_tiles(stored[0])])
    item["PixelData"].VR, item["PixelData"].is_undefined_length = "OB", True
    item.save_as(folder / "tiles.dcm")
    jpeg = sitk.GetImageFromArray(stored[:1])
    jpeg.SetMetaData("0008|0016", "1.2.840.10008.5.1.4.1.1.2")
    jpeg.SetMetaData("0008|0060", "CT")
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "jpeg.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(jpeg)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def jpeg2000_in_tiles(stored: np.ndarray) -> bytes:
    """A code stream with several tiles, tile parts and packet length markers, as pydicom's encoder writes none."""
    from PIL import Image

    stream = io.BytesIO()
    options = {"tile_size": (16, 16), "plt": True, "progression": "RPCL", "no_jp2": True}
    Image.fromarray(stored.astype("<u2")).save(stream, "JPEG2000", **options)
    return stream.getvalue()


def mutate(rng: random.Random, data: bytes, name: str) -> bytes:
    """One to four random changes, most of them in the header of the file or, where there is one, the code stream."""
    packed = name.endswith(".gz") and rng.random() < 0.7
    body = bytearray(gzip.decompress(data) if packed else data)
    stream = data.rfind(PIXEL_DATA) if name in STREAMS and rng.random() < 0.6 else 0
    for _ in range(rng.randint(1, 4)):
        first = min(stream, len(body))
        reach = len(body) if rng.random() < 0.25 else min(len(body), first + (250 if first else 1600))
        if first >= reach:
            break
        at = rng.randrange(first, reach)
        kind = rng.randrange(8)
        if kind == 0:
            body[at] = rng.randrange(256)
        elif kind == 1:
            body[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            value = rng.choice([0, 1, -1, 2**31 - 1, -(2**31), 2**15 - 1, 10**6, 0x7FC00000, 0x7F800000])
            body[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, rng.choice(["little", "big"]))  # type: ignore[arg-type]
        elif kind == 3:
            del body[at:]
        elif kind == 4:
            del body[at : at + rng.randint(1, 40)]
        elif kind == 5:
            body[at:at] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 40)))
        elif kind == 6:
            start = rng.randrange(first, reach)
            body[at : at + 30] = body[start : start + 30]
        else:
            digits = [n for n in range(first, reach) if 48 <= body[n] <= 57]
            if digits:
                where = rng.choice(digits)
                body[where : where + 1] = rng.choice([b"9999999999", b"-1", b"nan", b"0", b"1e308", b"x", b" "])
    return gzip.compress(bytes(body), 1) if packed else bytes(body)


def check(path: Path) -> str:
    """Read one mutant; the returned word says what happened, anything but a volume or a VoxelFMError is raised."""
    from voxelfm_hf.volumes import VoxelFMError, read_volume

    try:
        volume = read_volume(path, spacing=(1, 1, 1) if path.suffix == ".npy" else None)
    except VoxelFMError as error:
        message = str(error)
        if not message.endswith(".") or "\n" in message or len(message) > 600:
            raise AssertionError(f"not a sentence: {message!r}") from error
        return "refused"
    volume.restore(volume.hu)
    return "read"


def run_batch(first: int, count: int, seed: int, seeds: dict[str, bytes], folder: Path) -> dict[str, int]:
    """Read mutants number first..first+count; the file is left behind when the process dies on it."""
    found = {"read": 0, "refused": 0}
    for number in range(first, first + count):
        rng = random.Random(f"{seed}/{number}")
        name = rng.choice(sorted(seeds))
        path = folder / f"{number}-{name}"
        path.write_bytes(mutate(rng, seeds[name], name))
        found[check(path)] += 1
        path.unlink()
    return found


def _load_writers() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scan_writers", Path(__file__).with_name("scan_writers.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Run batches in limited processes and report every mutant that broke one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="seed files to damage, by name")
    parser.add_argument("--batch", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.batch:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
        first, count = map(int, options.batch.split(","))
        folder = Path(options.folder)
        seeds = {path.name: path.read_bytes() for path in (folder / "seeds").iterdir()}
        found = run_batch(first, count, options.seed, seeds, folder)
        print(found["read"], found["refused"], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return 0
    failures, read, refused, peak, start = [], 0, 0, 0, time.time()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "seeds").mkdir()
        for seed in make_seeds(folder / "seeds", _load_writers()):
            if options.only and seed not in options.only:
                (folder / "seeds" / seed).unlink()
        first = 0
        while first < options.count:
            count = min(BATCH, options.count - first)
            command = [
                sys.executable,
                __file__,
                "--seed",
                str(options.seed),
                "--batch",
                f"{first},{count}",
                "--folder",
                name,
            ]
            try:
                result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS_PER_MUTANT * 5)
                code, said = result.returncode, result.stderr
            except subprocess.TimeoutExpired:
                code, said = -1, "timeout"
            if code == 0:
                numbers = [int(n) for n in result.stdout.split()]
                read, refused, peak = read + numbers[0], refused + numbers[1], max(peak, numbers[2])
                first += count
                continue
            left = [p for p in folder.iterdir() if p.is_file()]
            broken = int(left[0].name.split("-")[0]) if left else first
            failures.append(
                (broken, left[0].name if left else "?", code, said.strip().splitlines()[-1:] or ["no message"])
            )
            print("FAILED", *failures[-1], flush=True)
            for path in left:
                path.unlink()
            first = broken + 1
    print(f"{options.count} mutants: {read} read, {refused} refused, {len(failures)} failures; "
          f"peak memory {peak} MiB; {time.time() - start:.0f} s")  # fmt: skip
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
