"""Buckets: what goes in comes out, nothing aliases, sizes are bounded."""

import io
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mmsr_ray.weights.publisher import buckets, checksum, pack


def named(n: int = 7) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer.{i}.weight": torch.randn(5, 3 + i, generator=generator) for i in range(n)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_come_back_in_the_dtype_asked_for(dtype: torch.dtype) -> None:
    tensors = named()
    unpacked = {name: packed.tensor() for bucket in buckets(tensors.items(), dtype, 200) for name, packed in bucket.items()}
    assert list(unpacked) == list(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(unpacked[name], tensor.to(dtype))


def test_none_keeps_dtypes_and_integers_are_never_cast() -> None:
    tensors = {"a": torch.arange(6).view(2, 3), "b": torch.ones(2, dtype=torch.float64), "scalar": torch.tensor(3.0)}
    (kept,) = buckets(tensors.items(), None, 1 << 20)
    assert [kept[name].tensor().dtype for name in tensors] == [torch.int64, torch.float64, torch.float32]
    assert kept["scalar"].tensor().shape == ()
    (cast,) = buckets(tensors.items(), torch.bfloat16, 1 << 20)
    assert torch.equal(cast["a"].tensor(), tensors["a"])


def test_buckets_are_bounded_and_complete() -> None:
    sizes = [sum(p.data.nbytes for p in bucket.values()) for bucket in buckets(named(20).items(), None, 300)]
    largest = max(t.nbytes for t in named(20).values())
    assert len(sizes) > 3
    assert all(300 <= size < 300 + largest for size in sizes[:-1])
    assert sum(sizes) == sum(t.nbytes for t in named(20).values())


def test_a_bucket_survives_the_end_of_its_tensors() -> None:
    """ZeRO-3 frees a gathered tensor when the next one is asked for; training writes to parameters in place."""

    def gathered() -> Iterator[tuple[str, torch.Tensor]]:
        for i in range(4):
            tensor = torch.full((3,), float(i))
            yield f"{i}", tensor
            tensor.fill_(-1.0)

    (bucket,) = buckets(gathered(), torch.float32, 1 << 20)
    assert [bucket[f"{i}"].tensor()[0].item() for i in range(4)] == [0, 1, 2, 3]


def test_transposed_weights_keep_their_values() -> None:
    tensor = torch.arange(12.0).view(3, 4).t()
    assert torch.equal(pack(tensor, None).tensor(), tensor)


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
