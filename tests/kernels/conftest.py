"""Kernels run in Triton's interpreter here, in another order of programs for every test."""

import zlib
from collections.abc import Iterator

import pytest

from kernels import dialect


@pytest.fixture(autouse=True)
def _any_order(request: pytest.FixtureRequest) -> Iterator[None]:
    if not dialect.PRESENT:
        yield
        return
    from tests.kernels.interpreter import permuted

    with permuted(zlib.crc32(request.node.nodeid.encode())):
        yield
