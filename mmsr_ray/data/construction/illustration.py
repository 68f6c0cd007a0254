"""A picture and the page it stands on, for each concept (spec §5.3 step 2). No Ray in here.

Promise: a kept candidate has a picture that decodes and the text of the page that shows it. A picture whose page cannot be read gives
its place to the next one. Licence and source are kept as the search tells them.
"""

from __future__ import annotations

from dataclasses import replace

from mmsr_ray.data.construction.candidate import Candidate, key_of
from mmsr_ray.data.construction.services import Web
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.types import FoundPicture

SPARES = 2  # pictures looked at beyond those wanted, for pages that are gone
NO_PICTURE, NO_PAGE = "no picture", "page gone"


async def illustrate(candidate: Candidate, web: Web, config: ConstructionConfig) -> list[Candidate]:
    """`pictures_per_concept` candidates, each with its picture and page or dropped. Raises ServiceFailed."""
    wanted = config.pictures_per_concept
    found = await web.pictures(candidate.concept, wanted + SPARES)
    chosen: list[tuple[FoundPicture, str]] = []
    gone = ""
    for hit in found:  # one after the other: a page that is read is paid for
        if len(chosen) == wanted:
            break
        if text := await web.page(hit.url):
            chosen.append((hit, text))
        else:
            gone = hit.url
    return [_numbered(candidate, number, chosen, gone) for number in range(wanted)]


def _numbered(candidate: Candidate, number: int, chosen: list[tuple[FoundPicture, str]], gone: str) -> Candidate:
    one = replace(candidate, key=key_of(candidate.key, str(number)))
    if number >= len(chosen):
        return one.dropped(NO_PAGE, gone) if gone else one.dropped(NO_PICTURE)
    hit, text = chosen[number]
    return replace(
        one,
        image=hit.thumbnail.data,
        image_url=hit.picture_url,
        page_url=hit.url,
        page_title=hit.title,
        page_text=text,
        licence=hit.licence,
        source=hit.source,
    )
