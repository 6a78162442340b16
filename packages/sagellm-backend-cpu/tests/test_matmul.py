"""What a product refuses, where torch would compute something, and what torch refuses itself."""

import pytest
import torch

from sagellm_backend import CPUBackendProvider
from sagellm_backend.errors import InvalidArgumentError


@pytest.fixture(scope="module")
def kernel():
    with CPUBackendProvider() as provider:
        yield provider.get_kernel("matmul")


@pytest.mark.parametrize("shapes", [((3, 4), (4, 5)), ((0, 4), (4, 5)), ((2, 3, 4), (2, 4, 1))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_products_of_matrices_and_batches(kernel, shapes, dtype):
    a, b = (torch.randint(-4, 5, shape).to(dtype) for shape in shapes)
    assert torch.equal(kernel(a, b), (a.double() @ b.double()).to(dtype))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(3, 4), torch.ones(4)),
        (torch.ones(4), torch.ones(4, 5)),
        (torch.ones(4), torch.ones(4)),
        (torch.ones(3, 4), torch.ones(2, 4, 5)),
        (torch.ones(1, 3, 4), torch.ones(2, 4, 5)),
        (torch.ones(3, 4), torch.ones(3, 5)),
        (torch.ones(3, 4), torch.ones(4, 5).half()),
        (torch.ones(3, 4).double(), torch.ones(4, 5).double()),
        (torch.ones(3, 4).long(), torch.ones(4, 5).long()),
        (torch.ones(3, 0), torch.ones(0, 5)),
        (torch.ones(3, 4), torch.ones(4, 0)),
        (torch.ones(3, 4), 2.0),
        (None, torch.ones(4, 5)),
    ],
)
def test_misuse_is_refused(kernel, a, b):
    with pytest.raises(InvalidArgumentError):
        kernel(a, b)
