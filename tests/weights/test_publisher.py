"""Buckets: what goes in comes out, nothing aliases, sizes are bounded."""

import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmsr_ray.weights.publisher import ALIGNMENT, Bucket, Staging, buckets, checksum


def named(n: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(5, 3 + i, generator=generator) for i in range(n)}


def kept(made: Iterator[Bucket]) -> list[Bucket]:
    """What whoever hands buckets on does: a copy of each before the next is asked for."""
    return [pickle.loads(pickle.dumps(bucket)) for bucket in made]


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_in_the_dtype_asked_for(dtype: torch.dtype, lasting: bool) -> None:
    tensors = named()
    made = kept(buckets(tensors.items(), dtype, 200, lasting=lasting))
    unpacked = {name: packed.tensor() for bucket in made for name, packed in bucket.items()}
    assert list(unpacked) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(unpacked[name], tensor.to(dtype))


def test_none_keeps_dtypes_and_integers_are_never_cast() -> None:
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.ones(2, dtype=torch.float64), "scalar": torch.tensor(3.0)}
    (same,) = kept(buckets(tensors.items(), None, 1 << 20))
    assert [same[name].tensor().dtype for name in tensors] == [torch.int64, torch.float64, torch.float32]
    assert same["scalar"].tensor().shape == ()
    (cast,) = buckets(tensors.items(), torch.bfloat16, 1 << 20)
    assert torch.equal(cast["a"].tensor(), tensors["a"])


@pytest.mark.parametrize("lasting", [False, True])
@pytest.mark.parametrize("bucket_bytes", [1, 300, 1000, 1 << 20])
def test_buckets_are_bounded_and_complete(bucket_bytes: int, lasting: bool) -> None:
    """Some tensors need a copy (float64), some do not."""
    tensors = {name: t.double() if i % 3 else t for i, (name, t) in enumerate(named(20).items())}
    made = kept(buckets(tensors.items(), torch.float32, bucket_bytes, lasting=lasting))
    assert all(len(bucket) == 1 or sum(p.data.nbytes for p in bucket.values()) <= bucket_bytes for bucket in made)
    unpacked = {name: packed.tensor() for bucket in made for name, packed in bucket.items()}
    assert list(unpacked) == list(tensors)
    assert all(torch.equal(unpacked[name], t.float()) for name, t in tensors.items())


def test_one_buffer_serves_every_bucket_of_every_publish() -> None:
    """New memory costs more than the copy into it."""
    staging = Staging()
    places = set()
    for _ in range(2):
        for bucket in buckets(named(20).items(), torch.bfloat16, 300, staging=staging):
            places |= {packed.data.__array_interface__["data"][0] for packed in bucket.values()}
    assert max(places) - min(places) < 300
    assert all(place % ALIGNMENT == min(places) % ALIGNMENT for place in places)


def test_lasting_tensors_are_not_copied() -> None:
    tensors = named()
    (bucket,) = buckets(tensors.items(), torch.float32, 1 << 20, lasting=True, checksums=False)
    for name, tensor in tensors.items():
        assert bucket[name].data.__array_interface__["data"][0] == tensor.data_ptr()
        assert bucket[name].checksum is None


def test_a_bucket_survives_the_end_of_its_tensors() -> None:
    """ZeRO-3 frees a gathered tensor when the next one is asked for; training writes to parameters in place."""

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(4):
            tensor = torch.full((3,), float(i))
            yield f"{i}", tensor
            tensor.fill_(-1.0)

    (bucket,) = buckets(gathered(), torch.float32, 1 << 20)
    assert [bucket[f"{i}"].tensor()[0].item() for i in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("lasting", [False, True])
def test_transposed_weights_keep_their_values(lasting: bool) -> None:
    tensor = torch.arange(12.0).view(3, 4).t()
    (bucket,) = buckets([("a", tensor)], None, 1 << 20, lasting=lasting)
    assert torch.equal(bucket["a"].tensor(), tensor)


def test_a_name_that_comes_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        list(buckets([("a", torch.ones(1)), ("a", torch.ones(1))], None, 1))


def test_bytes_travel_out_of_band() -> None:
    """Ray shares out-of-band buffers between processes without a copy; in-band bytes would be copied by every reader."""
    (bucket,) = buckets(named().items(), None, 1 << 20)
    buffers: list[pickle.PickleBuffer] = []
    stream = io.BytesIO()
    pickle.Pickler(stream, 5, buffer_callback=buffers.append).dump(bucket)
    assert sum(b.raw().nbytes for b in buffers) == sum(t.nbytes for t in named().values())
    assert stream.tell() < 4_000


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 1001])
def test_checksum_sees_a_changed_byte(size: int) -> None:
    data = np.random.default_rng(0).integers(0, 255, size, dtype=np.uint8)
    before = checksum(data)
    assert 0 <= before < 2**64
    for index in {0, size // 2, size - 1} if size else set():
        changed = data.copy()
        changed[index] += 1
        assert checksum(changed) != before
