"""Uses the page as two people with a browser would: `python browse_space.py CHROMIUM FOLDER [SCAN...]`.

Scans are files or DICOM folders, which are zipped; the first belongs to one person, the second to the other. Without
any, synthetic chests are made. Pictures of the page are left in FOLDER. Whatever the page asks of another host than its
own, and whatever its scripts complain about, is an error.
"""

import os
import re
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import pydicom
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.library.small_page import write_probe, write_report_model, write_store
from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_dicom_series, write_nifti
from voxelfm_hf.space.app import Page as SpacePage
from voxelfm_hf.space.app import serve
from voxelfm_hf.space.limits import CLAIM_SECONDS
from voxelfm_hf.space.uploads import FOLDER_PREFIX

PATIENCE_MS = 120_000
expect.set_options(timeout=PATIENCE_MS)


class Visitor:
    """One person with a browser window of their own, and everything the page gave it."""

    def __init__(self, browser: Browser, address: str):
        self.address, self.asked, self.complaints = address, [], []
        self.page: Page = browser.new_context(viewport={"width": 1300, "height": 1500}).new_page()
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(address)
        expect(self.page.locator("#file1")).to_be_visible()

    def strangers(self) -> list[str]:
        """What was asked of another host."""
        return [url for url in self.asked if not url.startswith((self.address, "data:", "blob:"))]

    def upload(self, number: int, scan: Path, answer: str = "patches.") -> float:
        """Uploads a scan and waits for the answer; seconds until the first picture."""
        start = time.perf_counter()
        before = self.source(f"axial{number}")
        self.page.locator(f"#file{number} input[type=file]").set_input_files(str(scan))
        seconds = 0.0
        if answer == "patches.":
            self.changes(f"axial{number}", before)
            seconds = time.perf_counter() - start
        expect(self.page.locator(f"#facts{number}")).to_contain_text(answer)
        return seconds

    def source(self, name: str) -> str:
        image = self.page.locator(f"#{name} img")
        return (image.get_attribute("src") or "") if image.count() else ""

    def changes(self, name: str, before: str) -> None:
        """Waits for another picture than before."""
        expect(self.page.locator(f"#{name} img")).not_to_have_attribute("src", before)

    def click(self, name: str, across: float, down: float) -> None:
        box = self.page.locator(f"#{name} img").bounding_box()
        assert box is not None
        self.page.mouse.click(box["x"] + across * box["width"], box["y"] + down * box["height"])

    def press(self, button: str, answer: str, words: str) -> None:
        """Presses a button and waits for words in another element."""
        self.page.locator(f"#{button}").click()
        expect(self.page.locator(f"#{answer}")).to_contain_text(words)


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for path in sorted(folder.iterdir()):
            out.write(path, path.name)
    return archive


def header_words(scan: Path) -> set[str]:
    """Text of a DICOM file's header that names or dates the patient or the study."""
    named = ("PN", "DA", "DT", "UI")
    ids = ("PatientID", "AccessionNumber", "StudyID", "InstitutionName", "StudyDescription", "SeriesDescription")
    item = pydicom.dcmread(scan, stop_before_pixels=True)
    words = {str(e.value) for e in item if e.VR in named or e.keyword in ids}
    return {word for word in words if len(word) > 3 and not word.startswith("1.2.840.10008.")}


def main() -> None:
    chromium, folder, *given = sys.argv[1:]
    out = Path(folder)
    scans, secrets = [], {"Jane Doe"}
    for number, scan in enumerate(map(Path, given)):
        if scan.is_dir():
            secrets |= header_words(next(scan.glob("*.dcm")))
            scan = zipped(scan, out / f"Jane Doe {number}.zip")
        scans.append(scan)
    if not scans:
        write_nifti(make_phantom(1, shape=(64, 80, 80)).volume, out / "chest1.nii.gz")
        write_dicom_series(make_phantom(2, shape=(64, 80, 80)).volume, out / "series")
        secrets |= header_words(next((out / "series").glob("*.dcm")))
        scans = [zipped(out / "series", out / "Jane Doe.zip"), out / "chest1.nii.gz"]
    bad = out / "Jane Doe.nii.gz"
    bad.write_bytes(b"not a scan")
    space = SpacePage("tiny", write_store(out), str(write_probe(out)), str(write_report_model(out)))
    address = serve(space).local_url

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        one, two = Visitor(browser, address), Visitor(browser, address)
        seconds, load = one.upload(1, scans[0]), os.getloadavg()[0]
        print(f"first picture of {scans[0].name} after {seconds:.1f} s, load {load:.1f} on {os.cpu_count()} cores")

        for plane in ("axial", "coronal", "sagittal"):  # scroll
            before = one.source(f"{plane}1")
            slider = one.page.locator(f"#slice-{plane}1 input[type=range]")
            slider.focus()
            slider.press("ArrowRight")
            one.changes(f"{plane}1", before)
        for control, choice in (("window", "lung"), ("layer", "patch features")):
            before = one.source("coronal1")
            one.page.locator(f"#{control}").get_by_text(choice).click()
            one.changes("coronal1", before)
        one.page.screenshot(path=out / "features.png")

        # At the same time: one person opens a second scan, the other an own one.
        two.page.locator("#file1 input[type=file]").set_input_files(str(scans[1]))
        one.upload(2, scans[-1])
        expect(two.page.locator("#facts1")).to_contain_text("patches.")
        mine, theirs = one.source("axial1"), two.source("axial1")
        two.upload(1, bad, answer="not a NIfTI file")
        assert one.source("axial1") == mine != theirs
        seen = [{url for url in v.asked if "/file=" in url} for v in (one, two)]
        assert seen[0] and seen[1] and not seen[0] & seen[1], "two people were given the same picture"
        assert not one.page.context.cookies() or one.page.context.cookies() != two.page.context.cookies()

        # A click shows what looks alike in both scans, another place looks like other places.
        for across, down in ((0.45, 0.55), (0.3, 0.45)):
            before = [one.source(name) for name in ("axial1", "axial2")]
            one.click("axial1", across, down)
            for name, picture in zip(("axial1", "axial2"), before, strict=True):
                one.changes(name, picture)
            expect(one.page.locator("#said")).to_contain_text("second scan")
        one.page.screenshot(path=out / "likeness.png")

        one.press("neighbours", "similar", "chest-1.nii.gz")
        one.press("probe", "answer", "pleural_effusion")
        one.press("report", "findings", "Pleural effusion")
        expect(one.page.locator("#text textarea")).to_have_value(re.compile("^[a-z]{20,}$"))
        one.page.screenshot(path=out / "answers.png")
        for visitor in (one, two):
            shown = visitor.page.content() + visitor.page.inner_text("body")
            leaked = [word for word in secrets if word in shown]
            assert not leaked, f"the page shows {leaked}"
            assert not visitor.strangers(), f"the page asked elsewhere: {visitor.strangers()}"
            assert not visitor.complaints, visitor.complaints
        browser.close()
    check_disk(Path(os.environ["GRADIO_TEMP_DIR"]))


def check_disk(folder: Path) -> None:
    """No upload is left, neither where they arrive nor where they are read; pictures of slices are."""
    last = time.monotonic() + 3 * CLAIM_SECONDS
    while left := [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size and not is_png(path)]:
        assert time.monotonic() < last, f"uploads were not deleted: {left}"
        time.sleep(0.2)
    assert not list(Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*")) and not list(
        folder.rglob(f"{FOLDER_PREFIX}*/*")
    )
    assert any(map(is_png, folder.rglob("*.png"))) and folder.stat().st_mode & 0o077 == 0


def is_png(path: Path) -> bool:
    return path.read_bytes()[:4] == b"\x89PNG"


if __name__ == "__main__":
    main()
