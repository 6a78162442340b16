"""Arrays of another framework in a kernel's arguments, and values that have no text."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.errors import InvalidArgumentError

ENDLESS = 10**5000  # more digits than Python will print


@pytest.fixture(scope="module")
def backend():
    with CPUBackendProvider() as provider:
        yield provider


@pytest.mark.parametrize(
    ("name", "arrays"),
    [
        ("linear", (np.ones((2, 4), np.float32), torch.ones(3, 4))),
        ("rms_norm", (np.ones((2, 4), np.float32), np.ones(4, np.float32), 1e-5)),
        ("softmax", (np.ones((2, 4), np.float32),)),
        ("embedding", (np.zeros(2, np.int64), torch.ones(3, 4))),
    ],
)
def test_numpy_arrays_are_refused_as_what_they_are(backend, name, arrays):
    with pytest.raises(
        InvalidArgumentError, match=r"no array of this backend but a ndarray.*from_"
    ):
        backend.get_kernel(name)(*arrays)


def test_numbers_that_cannot_be_printed_are_refused_all_the_same(backend):
    x, weight = torch.ones(2, 4), torch.ones(4)
    with pytest.raises(InvalidArgumentError, match="eps"):
        backend.get_kernel("rms_norm")(x, weight, -ENDLESS)
    with pytest.raises(InvalidArgumentError, match="window"):
        backend.get_kernel("attention", window=-ENDLESS)
    with pytest.raises(InvalidArgumentError, match="not a reduction"):
        backend.all_reduce(x, ENDLESS)
