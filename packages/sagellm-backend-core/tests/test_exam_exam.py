"""What a case is given: seeds, data, checks."""

from __future__ import annotations

from unittest import SkipTest

import ml_dtypes
import numpy as np
import pytest

from sagellm_backend.conformance.case import Case
from sagellm_backend.conformance.exam import CheckFailed, Exam, case_seed, is_skip
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import CapabilityError, InvalidArgumentError, OutOfMemoryError
from sagellm_backend.reference.provider import ReferenceProvider

CASE = Case("core.x", "core", "It proves.", print, {"dtype": DType.BF16})


def make_exam(**options):
    return Exam(CASE, ReferenceProvider().capability(), ReferenceProvider, **options)


@pytest.fixture
def exam():
    made = make_exam()
    yield made
    made.close()


class TestSeeds:
    @pytest.mark.parametrize(
        ("root", "name", "seed", "first"),
        [
            (0, "core.x", 0x3144BFD2C05E130C, 4252666548),
            (20261, "kv.copy_keeps_other_blocks[bf16-NHD]", 0xF8474067BD9AE26B, 3319882207),
            (2**128 - 1, "core.x", 0xF3BF8F6809F02AF1, 516223179),
        ],
    )
    def test_vectors(self, root, name, seed, first):
        assert case_seed(root, name) == seed
        rng = np.random.Generator(np.random.Philox(seed))
        assert int(rng.integers(0, 1 << 32)) == first

    def test_the_exam_draws_from_the_seed_of_its_case(self):
        exam = make_exam(root_seed=20261, rank=1, world=2)
        assert exam.seed == case_seed(20261, "core.x")
        rng = np.random.Generator(np.random.Philox(exam.seed))
        np.testing.assert_array_equal(exam.rng.random(5), rng.random(5))


class TestProviders:
    def test_all_are_closed(self, exam):
        others = [exam.make(), exam.make(memory_limit=1 << 20)]
        exam.close()
        assert exam.provider.closed
        assert all(other.closed for other in others)
        assert others[1].config.memory_limit == 1 << 20

    def test_all_are_closed_though_one_cannot_be(self, exam):
        others = [exam.make(), exam.make()]
        others[1]._synchronize = lambda: 1 / 0
        with pytest.raises(ZeroDivisionError):
            exam.close()
        assert exam.provider.closed
        assert others[0].closed

    def test_every_rank_has_a_device_of_its_own(self):
        for rank in range(4):
            exam = make_exam(rank=rank, world=4)
            assert exam.provider.config.device == rank % 2
            assert exam.make(device=1).config.device == 1
            exam.close()

    def test_parameters(self, exam):
        assert exam["dtype"] is DType.BF16
        with pytest.raises(KeyError):
            exam["other"]

    def test_alone_nobody_dies(self, exam):
        with pytest.raises(CheckFailed, match="one process"):
            exam.die()


class TestChecks:
    def test_check(self, exam):
        exam.check([1], "never said")
        with pytest.raises(CheckFailed, match="said"):
            exam.check([], "said")

    def test_measures_are_finite_numbers(self, exam):
        exam.measure("r_max", 1)
        exam.measure("r_max", np.float32(0.5))
        assert exam.metrics == {"r_max": 0.5}
        for bad in (float("nan"), float("inf")):
            with pytest.raises(CheckFailed, match="r_max"):
                exam.measure("r_max", bad)

    @pytest.mark.parametrize(
        "array",
        [
            np.array([np.nan, -0.0, np.inf], np.float32),
            np.array([np.nan, 1], ml_dtypes.bfloat16),
            np.arange(24, dtype=np.int8).reshape(2, 3, 4)[:, ::2],
            np.empty((3, 0), np.int64),
            np.array(7, np.int32),
        ],
    )
    def test_equal_bits(self, exam, array):
        exam.equal_bits(array.copy(), array, "it")

    @pytest.mark.parametrize(
        ("got", "wanted", "words"),
        [
            (np.float32([0.0, 1]), np.float32([-0.0, 1]), r"1 of 2 elements differ.*\(0,\)"),
            (np.uint32([0x7FC00001]).view("f4"), np.uint32([0x7FC00000]).view("f4"), "1 of 1"),
            (np.int8([[1, 2], [3, 4]]), np.int8([[1, 2], [5, 6]]), r"2 of 4.*\(1, 0\): 3 came"),
            (np.array(1), np.array(2), r"1 of 1.*at \(\): 1 came, wanted 2"),
            (np.zeros(2), np.zeros(3), r"float64\(2,\) came, wanted float64\(3,\)"),
            (np.zeros(2, "i4"), np.zeros(2, "f4"), "int32"),
            ([0.0], np.zeros(1), "a list came"),
        ],
    )
    def test_other_bits(self, exam, got, wanted, words):
        with pytest.raises(CheckFailed, match=f"^copy: .*{words}"):
            exam.equal_bits(got, wanted, "copy")


class TestRefuses:
    def test_the_refusal_comes_back(self, exam):
        found = exam.refuses(
            InvalidArgumentError, exam.provider.empty, (2, -1), dtype="fp32", says=("-1", "SHAPE")
        )
        assert "-1" in str(found)

    @pytest.mark.parametrize(
        ("kind", "call", "words"),
        [
            (CapabilityError, lambda: 3, "returned a int instead of raising CapabilityError"),
            (CapabilityError, lambda: 1 / 0, "raised ZeroDivisionError instead of CapabilityError"),
            (OutOfMemoryError, lambda: (_ for _ in ()).throw(MemoryError()), "raised MemoryError"),
        ],
    )
    def test_anything_else_fails(self, exam, kind, call, words):
        with pytest.raises(CheckFailed, match=words):
            exam.refuses(kind, call)

    def test_a_message_that_does_not_name_it_fails(self, exam):
        def refuse():
            raise CapabilityError("graph", "chip", "it is not declared.")

        exam.refuses(CapabilityError, refuse, says=("Graph", "chip"))
        with pytest.raises(CheckFailed, match="without naming stream"):
            exam.refuses(CapabilityError, refuse, says=("graph", "stream"))

    def test_a_late_refusal_fails(self, exam, monkeypatch):
        clock = iter((0.0, 5.1))
        monkeypatch.setattr("time.monotonic", lambda: next(clock))

        def refuse():
            raise CapabilityError("graph", "chip", "it is not declared.")

        with pytest.raises(CheckFailed, match=r"took 5\.1 s to refuse"):
            exam.refuses(CapabilityError, refuse)

    def test_a_skip_stays_one(self, exam):
        def skip():
            raise SkipTest

        with pytest.raises(SkipTest):
            exam.refuses(CapabilityError, skip)
        assert is_skip(SkipTest())
        assert not is_skip(CapabilityError("graph", "chip", "no"))


class TestFill:
    @pytest.mark.parametrize("dtype", tuple(DType))
    def test_every_value_comes_and_no_nan(self, exam, dtype):
        got = exam.fill((64, 1024), dtype)
        assert got.dtype == dtype.numpy
        assert got.shape == (64, 1024)
        wide = got.astype(np.float64)
        assert not np.isnan(wide).any()
        assert (wide < 0).any()
        if dtype is DType.INT4:
            assert set(wide.ravel()) == set(range(-8, 8))
        elif dtype in (DType.INT8, DType.FP8):
            values = 256 if dtype is DType.INT8 else 254
            assert len(np.unique(got.view(np.uint8))) == values
        elif not dtype.is_floating:
            info = np.iinfo(got.dtype)
            assert wide.max() > info.max * 0.99
            assert wide.min() < info.min * 0.99

    def test_one_number(self, exam):
        assert exam.fill((), DType.FP32).shape == ()
        assert exam.fill(5, "bf16").shape == (5,)
