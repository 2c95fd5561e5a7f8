"""A botocore session, without what costs botocore most for each request and nobody here needs.

Measured for a GET of 64 KiB: a third of the CPU went into composing the same `User-Agent` twice for each
request, and into reading `Last-Modified` with dateutil, which takes dates in any notation.

Invariants: what cannot be read here is left to botocore, and so is a `User-Agent` with an application's own
id (`AWS_SDK_UA_APP_ID`), or with characters that no header has (from `AWS_EXECUTION_ENV`).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

import botocore.session
from botocore.config import Config
from botocore.utils import parse_timestamp

_FOR_CREDENTIALS: Final = Config(
    connect_timeout=5,
    read_timeout=10,
    retries={"mode": "standard", "total_max_attempts": 3},
)
"""For the clients that botocore makes itself, of STS: a blocked way there is told in seconds."""

_NOTATIONS: Final[tuple[Callable[[str], datetime], ...]] = (
    parsedate_to_datetime,  # of HTTP's headers
    datetime.fromisoformat,  # of listings and of STS
)


def new_session(profile: str | None) -> botocore.session.Session:
    """A session of that profile, or of the environment's. Raises what botocore raises."""
    session = botocore.session.Session(profile=profile)
    session.set_default_client_config(_FOR_CREDENTIALS)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=timestamp)
    return session


def user_agent(session: botocore.session.Session) -> str | None:
    """What a client of this session says of itself, once for all requests; None leaves it to botocore."""
    text = session.user_agent()
    plain = text.isascii() and text.isprintable()
    return text if plain and not session.get_config_variable("user_agent_appid") else None


def timestamp(value: Any) -> datetime:
    """A point in time as it stands in an answer. Raises ValueError for what is none."""
    if isinstance(value, str):
        for read in _NOTATIONS:
            try:
                found = read(value)
            except (ValueError, OverflowError):
                continue
            if found.tzinfo is not None:
                return found
    return parse_timestamp(value)
