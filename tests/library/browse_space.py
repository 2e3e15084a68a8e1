"""Uses the page as two people with a browser would: `python browse_space.py CHROMIUM FOLDER [SCAN...]`.

Without scans two synthetic chests are made. Pictures of the page are left in FOLDER. Whatever the page asks of another
host than its own, and whatever its scripts complain about, is an error.
"""

import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from voxelfm_hf.data.phantom import make_phantom
from voxelfm_hf.data.write_scan import write_nifti
from voxelfm_hf.space.app import Page as SpacePage
from voxelfm_hf.space.app import serve

PATIENCE_MS = 120_000


def visit(browser, address: str, strangers: list[str]) -> Page:
    page = browser.new_context(viewport={"width": 1300, "height": 1500}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else strangers.append(r.url))
    page.on("pageerror", lambda error: strangers.append(f"page error: {error}"))
    page.goto(address)
    expect(page.locator("#file1")).to_be_visible(timeout=PATIENCE_MS)
    return page


def upload(page: Page, number: int, scan: Path, answer: str = "patches.") -> float:
    """Uploads a scan and waits for the answer; seconds until the first picture."""
    start = time.perf_counter()
    page.locator(f"#file{number} input[type=file]").set_input_files(str(scan))
    seconds = 0.0
    if answer == "patches.":
        expect(page.locator(f"#axial{number} img")).to_be_visible(timeout=PATIENCE_MS)
        seconds = time.perf_counter() - start
    expect(page.locator(f"#facts{number}")).to_contain_text(answer, timeout=PATIENCE_MS)
    return seconds


def source(page: Page, name: str) -> str | None:
    return page.locator(f"#{name} img").get_attribute("src")


def changes(page: Page, name: str, before: str | None) -> None:
    expect(page.locator(f"#{name} img")).not_to_have_attribute("src", before or "", timeout=PATIENCE_MS)


def main() -> None:
    chromium, folder, *scans = sys.argv[1:]
    out = Path(folder)
    if not scans:
        for seed in (1, 2):
            scan = out / f"chest{seed}.nii.gz"
            write_nifti(make_phantom(seed, shape=(64, 80, 80)).volume, scan)
            scans.append(str(scan))
    bad = out / "Jane Doe.nii.gz"
    bad.write_bytes(b"not a scan")
    _, address, _ = serve(SpacePage("tiny"), prevent_thread_lock=True, quiet=True)
    strangers: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = visit(browser, address, strangers)
        print(f"first picture after {upload(page, 1, Path(scans[0])):.1f} s")

        before = source(page, "axial1")  # scroll
        slider = page.locator("#slice-axial1 input[type=range]")
        slider.focus()
        slider.press("ArrowRight")
        changes(page, "axial1", before)

        before = source(page, "coronal1")  # another window, then features over the scan
        page.locator("#window").get_by_text("lung").click()
        changes(page, "coronal1", before)
        before = source(page, "coronal1")
        page.locator("#layer").get_by_text("patch features").click()
        changes(page, "coronal1", before)
        page.screenshot(path=out / "features.png")

        other = visit(browser, address, strangers)  # a second person, with another scan and a bad file
        upload(other, 1, Path(scans[1]))
        mine, theirs = source(page, "axial1"), source(other, "axial1")
        upload(other, 1, bad, answer="not a NIfTI file")
        assert "Jane" not in other.locator("#facts1").inner_text()
        assert source(page, "axial1") == mine != theirs

        upload(page, 2, Path(scans[1]))  # two scans: a click in one finds the like in the other
        before, before_second = source(page, "axial1"), source(page, "axial2")
        box = page.locator("#axial1 img").bounding_box()
        page.mouse.click(box["x"] + 0.45 * box["width"], box["y"] + 0.55 * box["height"])
        changes(page, "axial1", before)
        changes(page, "axial2", before_second)
        expect(page.locator("#said")).to_contain_text("second scan", timeout=PATIENCE_MS)
        page.screenshot(path=out / "likeness.png")
        browser.close()
    left = [
        path for path in Path(tempfile.gettempdir(), "gradio").rglob("*") if path.name in {Path(s).name for s in scans}
    ]
    assert not left, f"uploads were not deleted: {left}"
    assert not strangers, f"the page asked elsewhere or failed: {strangers}"


if __name__ == "__main__":
    main()
