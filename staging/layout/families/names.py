"""Rules about any checkpoint: names that mean one file everywhere, and files that have no place in one."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from typing import Final

from staging.formats.stranger import LFS_POINTER, WEB_PAGE, XML_ANSWER
from staging.layout.facts import Facts
from staging.layout.families.training import is_training_file
from staging.layout.inventory import Unreadable, is_leftover
from staging.layout.rule import Evidence, Family
from staging.vocabulary.paths import collisions, why_unsafe

FAMILY: Final = Family("any")

_ARCHIVES: Final = (".tar", ".tgz", ".tar.gz", ".tar.zst", ".tar.xz", ".tar.bz2", ".tar.lz4")
_PROGRAMS: Final = (".so", ".dylib", ".dll", ".exe", ".pyd", ".pyc", ".jar", ".whl")
_SCRIPTS: Final = (".sh", ".bash", ".bat", ".cmd", ".ps1")
_PICKLES: Final = (".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill")
_PICKLED_WEIGHTS: Final = (
    "pytorch_model*.bin",
    "adapter_model*.bin",
    "diffusion_pytorch_model*.bin",
)
_UNFINISHED: Final = (".incomplete", ".part", ".partial", ".aria2", ".crdownload")
_ASIDE: Final = re.compile(r"(^|/)(\.git|\.cache)/")


def is_pickle(path: str) -> bool:
    """True for what runs code when it is loaded, by its name."""
    name = path.rpartition("/")[2].lower()
    return name.endswith(_PICKLES) or any(
        fnmatch.fnmatchcase(name, pattern) for pattern in _PICKLED_WEIGHTS
    )


@FAMILY.rule(
    "name-unsafe",
    "error",
    reason="every name has to mean the same file everywhere, and lie inside the checkpoint",
    fix="rename the file and pack the checkpoint again",
    source="CVE-2007-4559: names with .. leave the directory that an archive is unpacked to",
    lasting=True,
)
def _name_unsafe(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        reason = why_unsafe(path)
        if reason is not None:
            yield Evidence(path, f"the name {path[:200]!r} is unsafe: {reason}")


@FAMILY.rule(
    "name-collision",
    "error",
    reason="two names that are equal but for case or Unicode form become one file on some filesystems",
    fix="rename one of the files and pack the checkpoint again",
    source="CVE-2021-21300: two names became one on filesystems that ignore case",
)
def _name_collision(facts: Facts) -> Iterator[Evidence]:
    for first, second in collisions(facts.paths):
        message = f"{second[:200]!r} cannot live beside {first[:200]!r} on every filesystem"
        yield Evidence(second, message)


@FAMILY.rule(
    "macos-leftover",
    "error",
    reason="macOS adds ._ files to archives, and ._model.safetensors would be loaded as weights",
    fix="pack the directory again with COPYFILE_DISABLE=1 and without .DS_Store",
    source="https://github.com/SceneWorks/SceneWorks/issues/1333",
    lasting=True,
    milder="warning",
)
def _macos_leftover(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        if is_leftover(path) or path.rpartition("/")[2] == ".DS_Store":
            yield Evidence(
                path,
                f"{path[:200]!r} was added by macOS and is no part of a checkpoint",
                severity="error" if is_leftover(path) else "warning",
            )


@FAMILY.rule(
    "archive-inside",
    "error",
    reason="nodes fetch unpacked files and would start without what is in an archive",
    fix="upload the inner archive itself, or pack the checkpoint without it",
    source="the vendor's deployment guide: extract each archive, and upload its contents, not the .tar",
    lasting=True,
)
def _archive_inside(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        if path.lower().endswith(_ARCHIVES):
            yield Evidence(path, f"{path[:200]!r} is an archive; a prefix holds the unpacked files")


@FAMILY.rule(
    "lfs-pointer",
    "error",
    reason="git without LFS leaves a pointer of three lines where a file should be",
    fix="run `git lfs pull` where the files come from, and pack the checkpoint again",
    source="https://github.com/0hq/WebGPT/issues/25",
    lasting=True,
)
def _lfs_pointer(facts: Facts) -> Iterator[Evidence]:
    for path, found in _unreadable(facts):
        if found.stranger is LFS_POINTER:
            yield Evidence(path, f"{path[:200]!r} is a git-LFS pointer, not the file itself")


@FAMILY.rule(
    "web-page",
    "error",
    reason="a download that needed a login leaves a web page or an error under the file's name",
    fix="download this file again, with the right to do so, and pack the checkpoint again",
    source="https://github.com/huggingface/transformers/issues/25818: params.json was a web page",
    lasting=True,
)
def _web_page(facts: Facts) -> Iterator[Evidence]:
    for path, found in _unreadable(facts):
        if found.stranger is WEB_PAGE or found.stranger is XML_ANSWER:
            yield Evidence(
                path, f"{path[:200]!r} cannot be used: {found.reason}, not the file itself"
            )


@FAMILY.rule(
    "json-broken",
    "error",
    reason="a server that cannot read its configuration does not start",
    fix="get this file again: it was cut, edited or replaced before the checkpoint was packed",
    source="https://github.com/huggingface/transformers/issues/25818",
    lasting=True,
)
def _json_broken(facts: Facts) -> Iterator[Evidence]:
    for path, found in _unreadable(facts):
        if not found.too_long and found.stranger not in (LFS_POINTER, WEB_PAGE, XML_ANSWER):
            yield Evidence(path, f"{path[:200]!r} cannot be read: {found.reason}")
    for path in facts.fresh:
        document = facts.inventory.documents.get(path, {})
        if not isinstance(document, (dict, Unreadable)):
            what = "null" if document is None else f"a {type(document).__name__}"
            yield Evidence(path, f"{path[:200]!r} is no JSON object but {what}", None, what)


@FAMILY.rule(
    "document-unread",
    "warning",
    reason="a configuration of many megabytes is no configuration, and nothing in it was checked",
    fix="look at the file; nothing that depends on it was checked",
    source="the caps of staging/layout/documents.py",
    lasting=True,
)
def _document_unread(facts: Facts) -> Iterator[Evidence]:
    for path, found in _unreadable(facts):
        if found.too_long:
            size = facts.files.get(path)
            yield Evidence(path, f"{path[:200]!r} has {size} bytes: {found.reason}", "size", size)


@FAMILY.rule(
    "executable-content",
    "error",
    reason="a program in a checkpoint runs with the server's rights once something loads it",
    fix="pack the checkpoint without it, or allow it by name",
    source="https://github.com/vllm-project/vllm/pull/12366: a malicious model may run code",
    lasting=True,
    milder="warning",
)
def _executable_content(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        name = path.lower()
        if facts.allows(path) or is_leftover(path):
            continue
        if name.endswith(_PROGRAMS) or re.search(r"\.so\.\d", name):
            yield Evidence(path, f"{path[:200]!r} is a program or a part of one")
        elif name.endswith(_SCRIPTS):
            message = f"{path[:200]!r} is a script; no server needs it"
            yield Evidence(path, message, severity="warning")


@FAMILY.rule(
    "pickle",
    "error",
    reason="a pickle runs code when it is loaded",
    fix="leave it out with --exclude, or allow it by name, or its folder, with --allow-file",
    source="https://github.com/vllm-project/vllm/pull/12366",
    lasting=True,
)
def _pickle(facts: Facts) -> Iterator[Evidence]:
    for path in facts.fresh:
        if is_pickle(path) and not (
            facts.allows(path) or is_leftover(path) or is_training_file(path)
        ):
            yield Evidence(path, f"{path[:200]!r} is a pickle by its name, which may run code")


@FAMILY.rule(
    "download-leftover",
    "warning",
    reason="what a download tool left behind is no part of a checkpoint; perhaps its download never ended",
    fix="finish the download, then pack the checkpoint without this",
    source="https://github.com/huggingface/huggingface_hub/issues/4228: a cache poisoned by half a download",
    lasting=True,
)
def _download_leftover(facts: Facts) -> Iterator[Evidence]:
    asides = []
    for path in facts.fresh:
        if path.lower().endswith(_UNFINISHED):
            yield Evidence(path, f"{path[:200]!r} is an unfinished download")
        elif _ASIDE.search(path):
            asides.append(path)
    if asides:
        more = f" and {len(asides) - 1} more" if len(asides) > 1 else ""
        yield Evidence(asides[0], f"{asides[0][:200]!r}{more} was left by the tool that fetched it")


def _unreadable(facts: Facts) -> Iterator[tuple[str, Unreadable]]:
    for path in facts.fresh:
        found = facts.inventory.documents.get(path)
        if isinstance(found, Unreadable):
            yield path, found
