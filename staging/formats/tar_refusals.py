"""Why tar archives are refused: references for scripts, reasons and hints for people."""

from __future__ import annotations

from typing import Final

from staging.formats.stranger import SAFETENSORS, recognise
from staging.vocabulary.errors import MalformedInput

REFUSED_TYPES: Final[dict[bytes, tuple[str, str]]] = {
    b"1": ("tar-link", "it is a hard link"),
    b"2": ("tar-link", "it is a symbolic link"),
    b"K": ("tar-link", "it announces a link with a long target"),
    b"3": ("tar-device", "it is a character device"),
    b"4": ("tar-device", "it is a block device"),
    b"6": ("tar-device", "it is a named pipe"),
    b"S": ("tar-sparse", "it is a sparse file"),
    b"M": ("tar-multivolume", "it continues from another volume"),
    b"V": ("tar-multivolume", "it is a volume label"),
    b"D": ("tar-multivolume", "it is a directory of an incremental backup"),
}
"""Why members of these types are refused: reference and reason. All other types are unknown."""

_PLAIN_FILES = (
    "pack plain files: tar -xf ARCHIVE -C DIR, then "
    "tar -ch --hard-dereference -C DIR NAME | staging upload - TARGET"
)
_DOWNLOAD_AGAIN = "compare the archive's size and digest with the vendor's, then download it again"
_REPACK = "ask the vendor for the archive again, made with `tar --format=pax` or `--format=gnu`"
_HINTS: Final = {
    "tar-checksum": _DOWNLOAD_AGAIN,
    "tar-truncated": _DOWNLOAD_AGAIN,
    "tar-no-end": _DOWNLOAD_AGAIN,
    "tar-padding": _DOWNLOAD_AGAIN,
    "tar-trailing": "upload one archive at a time; if it was never joined, download it again",
    "tar-link": _PLAIN_FILES,
    "tar-device": _PLAIN_FILES,
    "tar-sparse": _PLAIN_FILES,
    "tar-multivolume": "pack the files into one plain archive, with no label and no --incremental",
    "tar-duplicate": "pack the files into a new archive; `tar -r` and `tar -u` append second copies",
    "tar-name": "rename the file and pack it again",
    "tar-empty": "check that this is the checkpoint's archive and not an empty one",
    "tar-too-many": "check that this is a checkpoint's archive",
}


class TarRefused(ValueError):
    """Why a piece of an archive is refused: a kebab-case `reference` and a `reason` in a few words.

    `hint` is for refusals that call for another action than their reference usually does.
    """

    def __init__(self, reference: str, reason: str, hint: str | None = None) -> None:
        super().__init__(reason)
        self.reference = reference
        self.reason = reason
        self.hint = hint

    def at(self, offset: int, place: str) -> MalformedInput:
        """The error to raise for this refusal at byte `offset` of the archive."""
        message = self.reason
        if self.reference != "not-a-tar":
            message = f"tar archive, byte {offset}, {place}: {message}"
        return MalformedInput(
            message,
            reference=self.reference,
            hint=self.hint or _HINTS.get(self.reference, _REPACK),
            side="source",
        )


def check_kind(start: bytes) -> None:
    """Refuse what is no tar archive by the name of what it is."""
    stranger = recognise(start)
    if stranger is None:
        return
    if stranger.unpack is not None:
        hint = (
            "a checkpoint comes as a plain .tar, the deployment bundle as .tar.gz; if this is a "
            f"compressed checkpoint, unpack it on the way: {stranger.unpack} FILE | staging upload - TARGET"
        )
    elif stranger is SAFETENSORS:
        hint = (
            "pack the directory that holds the whole checkpoint: "
            "tar -c -C PARENT NAME | staging upload - TARGET"
        )
    else:
        hint = "get the archive again; a download link that expired answers with a page, not a file"
    raise TarRefused("not-a-tar", f"this is {stranger.name}, not a tar archive", hint)
