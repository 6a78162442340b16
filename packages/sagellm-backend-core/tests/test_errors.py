"""Every error is a BackendError with a code, and the builtin that fits it."""

from __future__ import annotations

import json

import pytest

from sagellm_backend import errors
from sagellm_backend.errors import BackendError, CapabilityError, ErrorCode, OutOfMemoryError

BUILTINS = {
    "InvalidArgumentError": (ValueError, "invalid_argument"),
    "OutOfMemoryError": (MemoryError, "resource_exhausted"),
    "UnavailableError": (RuntimeError, "unavailable"),
    "PackageClashError": (ImportError, "unavailable"),
    "PackageMissingError": (ImportError, "unavailable"),
    "CapabilityError": (NotImplementedError, "not_implemented"),
    "OperatorNotFoundError": (KeyError, "operator_not_found"),
    "DeadlineExceededError": (TimeoutError, "deadline_exceeded"),
    "KVTransferError": (RuntimeError, "kv_transfer_failed"),
    "CommError": (RuntimeError, "comm_collective_failed"),
    "CommTimeoutError": (TimeoutError, "comm_timeout"),
}


def family():
    """Every class of the family but the root."""
    classes = [value for value in vars(errors).values() if isinstance(value, type)]
    return [c for c in classes if issubclass(c, BackendError) and c is not BackendError]


def test_the_table_above_is_the_whole_family():
    assert {c.__name__ for c in family()} == set(BUILTINS)


@pytest.mark.parametrize("kind", family(), ids=lambda kind: kind.__name__)
def test_each_is_its_builtin_and_has_its_code(kind):
    builtin, code = BUILTINS[kind.__name__]
    assert issubclass(kind, builtin)
    assert kind.code == ErrorCode(code)


@pytest.mark.parametrize("kind", family(), ids=lambda kind: kind.__name__)
def test_the_text_is_the_message_then_the_hint(kind):
    parts = ("graph", "cpu", "none") if kind is CapabilityError else ("It broke.",)
    plain, hinted = kind(*parts), kind(*parts, hint="Mend it.")
    assert str(plain) == plain.message
    assert str(hinted) == f"{plain.message} Hint: Mend it."
    with pytest.raises(kind) as caught:
        raise hinted
    assert caught.value.hint == "Mend it."


def test_numbers_travel_with_the_error_and_it_becomes_plain_data():
    error = OutOfMemoryError("Too much.", hint="Free some.", requested=8, free=4)
    assert error.numbers == {"requested": 8, "free": 4}
    assert json.loads(json.dumps(error.to_dict())) == {
        "error": "OutOfMemoryError",
        "code": "resource_exhausted",
        "message": "Too much.",
        "hint": "Free some.",
        "numbers": {"requested": 8, "free": 4},
    }


def test_a_code_can_be_narrowed_for_one_error_only():
    error = errors.CommError("No such group.", code=ErrorCode.COMM_GROUP_NOT_FOUND)
    assert error.code == "comm_group_not_found"
    assert errors.CommError.code == "comm_collective_failed"


def test_a_capability_error_names_feature_provider_and_reason():
    error = CapabilityError("graph", "cpu", "no device graphs.", hint="Run eagerly.")
    assert (error.feature, error.provider, error.reason) == ("graph", "cpu", "no device graphs.")
    for word in ("'graph'", "'cpu'", "no device graphs", "Run eagerly"):
        assert word in str(error)
