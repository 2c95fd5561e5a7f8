"""XML documents of the S3 API, built from nested elements and read without namespaces."""

from __future__ import annotations

from xml.etree import ElementTree
from xml.sax.saxutils import escape

from tests.support.s3server.errors import S3Error

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


class Xml(str):
    """Text that is markup already."""

    __slots__ = ()


def element(name: str, *content: str | int | bool) -> Xml:
    """`<name>content</name>`; plain text is escaped, `Xml` is not, booleans are in lower case."""
    return Xml(f"<{name}>{''.join(_render(item) for item in content)}</{name}>")


def _render(item: str | int | bool) -> str:
    if isinstance(item, Xml):
        return item
    if isinstance(item, bool):
        return "true" if item else "false"
    return escape(str(item), {"\r": "&#13;"})


def document(name: str, *content: str | int | bool) -> bytes:
    """A whole document in the S3 namespace."""
    inner = "".join(_render(item) for item in content)
    return (
        f'<?xml version="1.0" encoding="UTF-8"?>\n<{name} xmlns="{NAMESPACE}">{inner}</{name}>'
    ).encode()


def error_document(error: S3Error, resource: str, request_id: str) -> bytes:
    """The body of an error answer."""
    inner = "".join(
        [
            element("Code", error.code),
            element("Message", error.message),
            *(element(name, value) for name, value in error.details.items()),
            element("Resource", resource),
            element("RequestId", request_id),
        ]
    )
    return f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{inner}</Error>'.encode()


def parse(body: bytes) -> ElementTree.Element:
    """The root of a request document, its tags without namespace. Raises S3Error MalformedXML."""
    try:
        root = ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise S3Error(
            400, "MalformedXML", f"The XML you provided was not well-formed: {error}"
        ) from None
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
    return root
