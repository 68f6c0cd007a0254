"""Bytes of a web page to text, whatever its encoding and whatever it claims.

Promise: never raises, linear in the size; only encodings of the web are tried, never Python's other codecs. Order: byte order
mark, valid UTF-8, what the header and the page declare, a guess by statistics. Declarations are often wrong; text that is
valid UTF-8 by accident is not.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from charset_normalizer import from_bytes

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
_HEAD_BYTES = 4_096
_DECLARED = re.compile(rb"""<(?:meta|\?xml)\b[^>]{0,400}?(?:charset|encoding)\s*=\s*["']?\s*([\w.:-]{1,40})""", re.IGNORECASE)
_WEB = re.compile(
    r"utf-8|utf-16(-le|-be)?|windows-(125[0-8]|874)|iso-8859-([1-9]|1[013-6])|koi8-[ru]|ibm866|macintosh"
    r"|cp932|euc-jp|iso-2022-jp|gb18030|big5hkscs|cp949"
)
# What a label means on the web, where it is not what Python takes it for (https://encoding.spec.whatwg.org/#names-and-labels).
_MEANT = {
    "utf8": "utf-8", "utf16": "utf-16", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be",
    "ascii": "windows-1252", "us-ascii": "windows-1252", "latin1": "windows-1252", "latin-1": "windows-1252",
    "iso-8859-1": "windows-1252", "iso-8859-9": "windows-1254", "cp1250": "windows-1250", "cp1251": "windows-1251",
    "cp1252": "windows-1252", "tis-620": "windows-874", "cp866": "ibm866", "koi8": "koi8-r",
    "shift_jis": "cp932", "shift-jis": "cp932", "sjis": "cp932", "x-sjis": "cp932", "windows-31j": "cp932", "x-euc-jp": "euc-jp",
    "gb2312": "gb18030", "gbk": "gb18030", "x-gbk": "gb18030", "gb_2312-80": "gb18030", "big5": "big5hkscs", "big5-hkscs": "big5hkscs",
    "euc-kr": "cp949", "ks_c_5601-1987": "cp949", "windows-949": "cp949",
}  # fmt: skip
_PYTHON = {"windows-874": "cp874", "macintosh": "mac_roman"}
_SEVEN_BIT = ("utf-16", "utf-16-le", "utf-16-be", "iso-2022-jp")  # every byte of theirs may pass for ASCII
_FEW = 0.005  # share of undecodable characters that a page is forgiven
_SAMPLE = 20_000


def decode(data: bytes, header: str) -> str:
    """The text of a page. `header` is the charset of its Content-Type, "" when there is none."""
    for mark, codec in _BOMS:
        if data.startswith(mark):
            return data[len(mark) :].decode(codec, "replace")
    declared = list(dict.fromkeys(_declared(data, header)))
    for codec in (*(codec for codec in declared if codec in _SEVEN_BIT), "utf-8", *declared):
        try:
            return data.decode(codec)
        except UnicodeDecodeError:
            continue
    for codec in (*declared, "utf-8"):
        text = data.decode(codec, "replace")
        if text.count("\ufffd") <= _FEW * len(text):
            return text
    guess = from_bytes(data[:_SAMPLE]).best()
    return data.decode(guess.encoding if guess is not None else "utf-8", "replace")


def _declared(data: bytes, header: str) -> Iterator[str]:
    """Codecs by the header and the page itself, the better witness first."""
    said = _codec(header)
    found = _DECLARED.search(data[:_HEAD_BYTES])
    meta = _codec(found[1].decode("ascii", "ignore")) if found is not None else ""
    if meta in _SEVEN_BIT[:3]:
        meta = ""  # whoever could read it knows better
    # many servers add Latin-1 to whatever they serve
    for codec in (meta, said) if said == "windows-1252" else (said, meta):
        if codec:
            yield _PYTHON.get(codec, codec)


def _codec(label: str) -> str:
    name = label.strip().strip("\"'").lower()
    name = _MEANT.get(name, name)
    return name if _WEB.fullmatch(name) else ""
