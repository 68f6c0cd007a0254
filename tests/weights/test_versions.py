"""Versions of weights: kept by number, served while they come, given up without leaving anybody waiting."""

import asyncio

import pytest

from mmsr_ray.weights.versions import NO_VERSION, UnknownVersion, Versions

SECONDS = 20.0


def published(versions: Versions[str], *numbers: int) -> Versions[str]:
    for number in numbers:
        versions.begin(number)
        versions.add(number, 0, f"{number}")
        versions.complete(number, 1, {"of": number})
    return versions


async def test_the_two_newest_are_kept_and_the_older_goes_when_a_new_one_begins() -> None:
    versions = published(Versions(), 1, 2, 5)
    assert versions.versions() == [2, 5]
    versions.begin(6)
    assert versions.versions() == [5]
    assert versions.latest() == 5
    assert versions.manifest(5) == {"of": 5, "buckets": 1}
    with pytest.raises(UnknownVersion, match="not complete"):
        versions.manifest(6)
    with pytest.raises(UnknownVersion, match="version 2"):
        await versions.bucket(2, 0, SECONDS)


def test_numbers_grow_and_a_version_has_all_its_buckets() -> None:
    versions = published(Versions(), 3)
    assert Versions().latest() == NO_VERSION
    with pytest.raises(ValueError, match="2 published after 3"):
        versions.begin(2)
    published(versions, 3)  # a publisher that did not hear the answer may say it again
    versions.begin(4)
    versions.add(4, 1, "second")
    for count in (0, 1, 2):
        with pytest.raises(ValueError, match="buckets"):
            versions.complete(4, count)
    assert versions.latest() == NO_VERSION or versions.latest() == 3


async def test_a_reader_gets_buckets_as_they_come() -> None:
    versions: Versions[str] = Versions()
    versions.begin(0)

    async def read() -> list[str]:
        found, index = [], 0
        while (bucket := await versions.bucket(0, index, SECONDS)) is not None:
            found.append(bucket)
            index += 1
        return found

    readers = [asyncio.create_task(read()) for _ in range(3)]
    for index in (1, 0, 2):
        await asyncio.sleep(0)
        versions.add(0, index, f"{index}")
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers), "there may be more"
    assert versions.latest() == NO_VERSION, "who starts now takes a version that is whole"
    versions.complete(0, 3)
    assert await asyncio.gather(*readers) == [["0", "1", "2"]] * 3


async def test_a_version_given_up_is_told_to_who_waits() -> None:
    versions = published(Versions(), 0)
    versions.begin(1)
    waiting = asyncio.create_task(versions.bucket(1, 0, SECONDS))
    await asyncio.sleep(0)
    versions.abandon(1)
    with pytest.raises(UnknownVersion):
        await waiting
    versions.abandon(0)
    assert versions.latest() == 0, "a completed version is not given up"
    versions.begin(1)
    waiting = asyncio.create_task(versions.bucket(1, 0, SECONDS))
    await asyncio.sleep(0)
    versions.begin(2)  # the publisher of 1 died
    with pytest.raises(UnknownVersion):
        await waiting
    with pytest.raises(TimeoutError):
        await versions.bucket(2, 0, 0.01)
