"""Opening what a command names as its source, whatever it is, and the options that belong to sources.

    -                       standard input
    https://HOST/PATH?...   a presigned URL
    https://                that of --source-url-file or STAGING_SOURCE_URL, which no process list shows
    s3://BUCKET/KEY         a tar that lies in a bucket
    hf://ORG/NAME@REVISION  a repository of a Hugging Face Hub
    anything else           a directory or a tar on this machine

Tars may be compressed: their first bytes tell, not their names. What can be read anywhere is indexed;
what is compressed, comes as a stream, or has to match a SHA-256 is read from end to end, once.
"""

from __future__ import annotations

import functools
import os
import re
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, TypeVar

import click

from staging import __version__
from staging.cli.options import DISTRIBUTION, Common
from staging.cli.paths import local_path, standard_input
from staging.source.archive import Archive
from staging.source.indexed_tar import LEAST_WINDOW, HeaderWindow, IndexedTar
from staging.source.read_ahead import DEFAULT_MEMORY
from staging.vocabulary.errors import StagingError, UsageError
from staging.vocabulary.location import S3Location
from staging.vocabulary.redaction import one_line

if TYPE_CHECKING:
    from staging.source.source import Source
    from staging.source.stream import Stream

F = TypeVar("F", bound=Callable[..., Any])

URL_ELSEWHERE: Final = "https://"
"""What stands for a URL that is given in a file or in the environment."""

URL_VARIABLE: Final = "STAGING_SOURCE_URL"

_SHOWN: Final = 5
_CONNECTIONS: Final = 64  # to the bucket of a tar in S3: no more are kept for reuse
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_ARCHIVE_KEY: Final = re.compile(r"(?i)\.(tar|tgz|tar\.gz|tar\.zst|tar\.zstd|tzst)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """The options of commands that read a source."""

    strip_components: int | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    expect_sha256: str | None = None
    source_url_file: str | None = None
    allow_private_address: bool = False
    allow_http: bool = False
    source_region: str | None = None
    source_profile: str | None = None
    source_endpoint_url: str | None = None


def source_options(function: F) -> F:
    """Add the options of sources to a command, which gets them as `source_options`."""

    @functools.wraps(function)
    def command(*given: Any, **named: Any) -> Any:
        names = SourceOptions.__dataclass_fields__
        options = SourceOptions(**{name: named.pop(name) for name in names})
        return function(*given, source_options=options, **named)

    for option in reversed(
        [
            click.option(
                "--strip-components",
                type=click.IntRange(min=0),
                metavar="N",
                help="Leading directories to remove from every name in a tar, instead of the one"
                " top-level directory.",
            ),
            click.option(
                "--include",
                multiple=True,
                metavar="GLOB",
                help="Take only files whose path matches; may be repeated.",
            ),
            click.option(
                "--exclude",
                multiple=True,
                metavar="GLOB",
                help="Leave files out whose path matches; may be repeated.",
            ),
            click.option(
                "--expect-sha256",
                metavar="HEX",
                envvar="STAGING_EXPECT_SHA256",
                help="SHA-256 of the archive as its vendor states it; other bytes are refused.",
            ),
            click.option(
                "--source-url-file",
                type=click.Path(dir_okay=False, allow_dash=True),
                envvar="STAGING_SOURCE_URL_FILE",
                help="File with the URL that https:// alone stands for; - for standard input.",
            ),
            click.option(
                "--allow-private-address",
                is_flag=True,
                help="Read URLs that lead into private networks or to this machine.",
            ),
            click.option("--allow-http", is_flag=True, help="Read URLs that are not encrypted."),
            click.option(
                "--source-region",
                envvar="STAGING_SOURCE_REGION",
                help="Region of a source in S3, if not that of the target.",
            ),
            click.option(
                "--source-profile",
                envvar="STAGING_SOURCE_PROFILE",
                help="Profile for a source in S3, if not that of the target.",
            ),
            click.option(
                "--source-endpoint-url",
                metavar="URL",
                envvar="STAGING_SOURCE_ENDPOINT_URL",
                help="Store of a source in S3, if not that of the target.",
            ),
        ]
    ):
        command = option(command)
    return command  # type: ignore[return-value]


def names_archive(uri: str) -> bool:
    """True for an S3 URI that by its looks is a tar rather than a prefix."""
    return uri.startswith("s3://") and _ARCHIVE_KEY.search(uri) is not None


def open_source(
    text: str,
    *,
    common: Common,
    options: SourceOptions,
    target: str = "",
    memory: int = DEFAULT_MEMORY,
) -> Source:
    """Open the source that a command line names; whoever called closes it.

    `target` is only named in hints. `memory` bounds, in bytes, what a source read from end to end holds
    ahead. Raises UsageError for what cannot be a source, and what opening raises.
    """
    _refuse_unusable(options)  # before anything is asked of anybody
    scheme = _SCHEME.match(text)
    kind = scheme[1].lower() if scheme else ""
    if options.source_url_file is not None and text != URL_ELSEWHERE:
        raise UsageError(
            f"--source-url-file gives a URL, and the source is not {URL_ELSEWHERE}",
            reference="source-options",
            hint=f"give {URL_ELSEWHERE} as the source, or leave --source-url-file out",
        )
    opening = _Opening(common, options, target, memory)
    if text == "-":
        source = opening.standard_input()
    elif kind in ("https", "http"):
        source = opening.url(text)
    elif kind == "s3":
        source = opening.s3(text)
    elif kind == "hf":
        source = opening.hub(text)
    else:
        source = opening.local(
            local_path(text, hint="a source is a path, -, https://..., s3://... or hf://...")
        )
    return opening.selected(source)


def remarks(source: Source) -> list[str]:
    """What is worth saying of a source that was read: what was left out, and patterns that met nothing."""
    from staging.source.directory import Directory
    from staging.source.selection import Selection

    said: list[str] = []
    inner = source
    if isinstance(source, Selection):
        said += [f"the pattern {one_line(text)!r} met no file" for text in source.unmatched]
        inner = source.source
    if isinstance(inner, Directory) and inner.skipped:
        shown = ", ".join(inner.skipped[:_SHOWN])
        more = f" and {len(inner.skipped) - _SHOWN} more" if len(inner.skipped) > _SHOWN else ""
        said.append(f"left out, no part of a checkpoint: {shown}{more}")
    return said


class _Opening:
    """The settings that all kinds of sources are opened with."""

    def __init__(self, common: Common, options: SourceOptions, target: str, memory: int) -> None:
        self._common = common
        self._options = options
        self._target = target
        self._memory = memory

    def standard_input(self) -> Source:
        """The pipe that this program reads."""
        return self._sequential(
            standard_input(), name="standard input", kind="pipe", argument="-", size=None
        )

    def url(self, text: str) -> Source:
        """What a presigned URL leads to."""
        from staging.source.web import WebStream, open_web
        from staging.source.web_host import WebSettings
        from staging.source.web_url import WebUrl

        url = WebUrl(_url_from_elsewhere(self._options) if text == URL_ELSEWHERE else text)
        opened = open_web(
            url,
            WebSettings(
                allow_http=self._options.allow_http,
                allow_private_address=self._options.allow_private_address,
                ca_bundle=self._common.ca_bundle,
                proxy=_proxy(url.scheme, url.host),
                user_agent=f"{DISTRIBUTION}/{__version__}",
            ),
        )
        if not isinstance(opened, WebStream):
            return self._archive(opened)
        return self._sequential(
            opened, name=opened.name, kind="url", argument="ARCHIVE", size=opened.size
        )

    def s3(self, text: str) -> Source:
        """A tar in a bucket."""
        from staging.source.s3_object import S3Archive

        location = S3Location.parse(text)
        key = location.prefix.removesuffix("/")
        if not key or text.endswith("/"):
            raise UsageError(
                f"{location} is a prefix, and a source is one archive",
                reference="uri",
                hint="give s3://BUCKET/KEY of a .tar; a published checkpoint needs no upload",
            )
        common = replace(
            self._common,
            region=self._options.source_region or self._common.region,
            profile=self._options.source_profile or self._common.profile,
            endpoint_url=self._options.source_endpoint_url or self._common.endpoint_url,
            expected_bucket_owner=None,  # that of the target; a source may be of anybody
        )
        return self._archive(S3Archive(common.store(location, connections=_CONNECTIONS), key))

    def hub(self, text: str) -> Source:
        """A repository of a Hub."""
        from staging.source.hub import Hub, HubLocation
        from staging.source.hub_http import DEFAULT_ENDPOINT, HubHttp

        self._refuse_options_of_archives("a repository of a Hub")
        http = HubHttp(
            endpoint=os.environ.get("HF_ENDPOINT") or DEFAULT_ENDPOINT,
            token=os.environ.get("HF_TOKEN") or None,
        )
        return Hub(HubLocation.parse(text), http, memory=self._memory)

    def local(self, path: Path) -> Source:
        """A directory or a tar on this machine."""
        from staging.source import tar_file

        if path.is_dir():
            from staging.source.directory import Directory

            self._refuse_options_of_archives("a directory")
            return Directory(path, target=self._target)
        return self._archive(tar_file.LocalArchive(path), window=tar_file.LEAST_WINDOW)

    def selected(self, source: Source) -> Source:
        """The files of a source that --include and --exclude leave."""
        if not self._options.include and not self._options.exclude:
            return source
        from staging.source.selection import Selection

        try:
            return Selection(source, include=self._options.include, exclude=self._options.exclude)
        except BaseException:
            source.close()
            raise

    def _archive(self, archive: Archive, *, window: int = LEAST_WINDOW) -> Source:
        """The tar in an archive: indexed if it is plain, and read from end to end if it must be."""
        from staging.source.compressed import START_BYTES, compression_of
        from staging.source.read_ahead import ReadAhead

        try:
            headers = HeaderWindow(archive, least=window)
            compression = compression_of(headers.read_at(0, min(START_BYTES, archive.size)))
        except BaseException:
            archive.close()
            raise
        if compression is None and self._options.expect_sha256 is None:
            return IndexedTar(
                archive,
                strip_components=self._options.strip_components,
                target=self._target,
                headers=headers,
            )
        return self._sequential(
            ReadAhead(archive, memory=self._memory),
            memory=self._memory,
            name=archive.name,
            kind=archive.kind,
            argument=archive.argument,
            size=archive.size,
            identity=archive.identity,
        )

    def _sequential(
        self,
        stream: Stream | BinaryIO,
        *,
        name: str,
        kind: str,
        argument: str,
        size: int | None,
        identity: str | None = None,
        memory: int = 0,
    ) -> Source:
        """The tar in a stream, which may be compressed and have to match a digest."""
        from staging.source.checked import Checked
        from staging.source.compressed import Unpacked
        from staging.source.pipe import Pipe

        if self._options.expect_sha256 is not None:
            stream = Checked(stream, self._options.expect_sha256)
        return Pipe(
            Unpacked(stream),
            name=name,
            kind=kind,
            identity=identity,
            size=size,
            argument=argument,
            memory=memory,
            strip_components=self._options.strip_components,
            target=self._target,
        )

    def _refuse_options_of_archives(self, what: str) -> None:
        given = {
            "--strip-components": self._options.strip_components,
            "--expect-sha256": self._options.expect_sha256,
        }
        for option, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{option} is for archives, and the source is {what}",
                    reference="source-options",
                    hint=f"leave {option} out",
                )


def _refuse_unusable(options: SourceOptions) -> None:
    """Raise UsageError for a digest or a pattern that is none."""
    from staging.source.checked import parse_sha256
    from staging.source.selection import Pattern

    if options.expect_sha256 is not None:
        parse_sha256(options.expect_sha256)
    for text in (*options.include, *options.exclude):
        Pattern(text)


def _url_from_elsewhere(options: SourceOptions) -> str:
    """The URL of --source-url-file, or else of the environment: neither shows in a process list."""
    from staging.source.web_url import MAX_URL_BYTES

    given = options.source_url_file
    if given is None:
        url = os.environ.get(URL_VARIABLE, "").strip()
        if not url:
            raise UsageError(
                f"the source is {URL_ELSEWHERE} alone, and no URL is given elsewhere",
                reference="source-options",
                hint=f"set {URL_VARIABLE}, or give --source-url-file FILE, or - to read the URL from"
                " standard input",
            )
        return url
    try:
        with standard_input() if given == "-" else open(given, "rb", buffering=0) as file:
            data = bytearray()
            while len(data) <= MAX_URL_BYTES and (piece := file.read(MAX_URL_BYTES)):
                data += piece
    except OSError as error:
        raise StagingError(
            f"cannot read the URL's file: {error.strerror}",
            reference="source-io",
            hint="check --source-url-file and its permissions",
            side="source",
        ) from error
    return data.decode("utf-8", "replace").strip()


def _proxy(scheme: str, host: str) -> str | None:
    """The proxy that the environment has for a host."""
    if urllib.request.proxy_bypass(host):
        return None
    proxies = urllib.request.getproxies()
    return proxies.get(scheme) or proxies.get("all")
