"""`voxelfm push`: a release to the Hub, checked before, in one commit."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from voxelfm_hf.release.checks import find_pickles, find_problems
from voxelfm_hf.release.folder import build_release, kind_of
from voxelfm_hf.volumes.errors import ReleaseError


@dataclass(frozen=True)
class Pushed:
    """What went to the Hub, or would go.

    Attributes:
        kind: What it is, in words.
        files: File -> size in bytes.
        left_out: Files of the folder that are not part of a release.
        url: Of the commit; None in a dry run.
    """

    kind: str
    files: dict[str, int]
    left_out: list[str] = field(default_factory=list)
    url: str | None = None


def push(
    folder: str | Path, repo_id: str, *, private: bool = False, dry_run: bool = False, allow_head: bool = False
) -> Pushed:
    """Builds the release of a folder, checks it and uploads it in one commit.

    Uploads that broke off are taken up by calling it again: the Hub keeps large files that arrived whole, and the
    repository changes only with the commit at the end.

    Args:
        folder: Folder of a model, probe, adapter or prepared data.
        repo_id: "user/name" on the Hub.
        private: Make a new repository private.
        dry_run: Build and check only.
        allow_head: Accept prepared scans that cover the head.

    Raises:
        ReleaseError: something speaks against it (all of it is said), or the Hub does not take it.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    folder = Path(folder)
    kind = kind_of(folder)
    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        raise ReleaseError(f"{repo_id} is no repository name: write user/name") from None
    if repo_id.count("/") != 1:
        raise ReleaseError(f"{repo_id} is no repository name: write user/name")
    # Beside the folder, so that large files are linked and not copied.
    with tempfile.TemporaryDirectory(prefix=".release-", dir=_writable_parent(folder)) as work:
        release = Path(work) / "release"
        left_out = build_release(folder, release, repo_id=repo_id)
        pickles = find_pickles(folder)
        problems = [*pickles, *find_problems(release, kind, allow_head=allow_head, load=not pickles)]
        if problems:
            raise ReleaseError(f"{folder} cannot be released: " + "; ".join(problems))
        files = {p.relative_to(release).as_posix(): p.stat().st_size for p in sorted(release.rglob("*")) if p.is_file()}
        url = None if dry_run else upload(release, repo_id, repo_type=kind.repo_type, private=private)
    return Pushed(kind.name, files, left_out, url)


def _writable_parent(folder: Path) -> Path | None:
    import os

    parent = folder.resolve().parent
    return parent if os.access(parent, os.W_OK) else None


def upload(release: Path, repo_id: str, *, repo_type: str = "model", private: bool = False) -> str:
    """Uploads a release folder in one commit and returns the commit's address; see `push`."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        commit = api.upload_folder(repo_id=repo_id, folder_path=release, repo_type=repo_type, commit_message="Release")
    except LocalTokenNotFoundError:
        raise ReleaseError("you are not logged in to the Hub: run `hf auth login`") from None
    except OfflineModeIsEnabled:
        raise ReleaseError("HF_HUB_OFFLINE is set: unset it to push") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        if status in (401, 403):
            raise ReleaseError(
                f"the Hub does not let you write to {repo_id} (HTTP {status}): run `hf auth login`"
            ) from None
        raise ReleaseError(f"the Hub refused {repo_id} (HTTP {status}): {str(error).splitlines()[0]}") from None
    except (httpx2.HTTPError, OSError, RuntimeError) as error:
        raise ReleaseError(
            f"the upload to {repo_id} broke off ({type(error).__name__}): run the same command again; files that "
            "arrived whole are not sent twice"
        ) from None
    return str(commit.commit_url)
