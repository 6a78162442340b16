"""Cases: ids, expansion, applicability, plans."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import replace
from enum import Enum
from types import ModuleType, SimpleNamespace

import pytest

from sagellm_backend.capability import CapabilityDescriptor, Feature
from sagellm_backend.conformance import suite
from sagellm_backend.conformance.case import PROFILES, all_cases, case, plan
from sagellm_backend.conformance.errors import HarnessError
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.dtypes import DType
from sagellm_backend.errors import InvalidArgumentError

CAPABILITY = CapabilityDescriptor(
    supported_dtypes=[DType.FP32, DType.BF16],
    features=frozenset({Feature.KV_POOL}),
    devices=(DeviceInfo(0, "a device"),),
)


@pytest.fixture
def declare(monkeypatch):
    """Declare cases in a module of their own: ``declare("name", profile, **options)``."""
    module = ModuleType("planted_here")
    monkeypatch.setitem(sys.modules, "planted_here", module)

    def add(name, profile="core", *, source="", **options):
        exec(f"def {name}(exam):\n    'It proves something.'\n{source}", vars(module))
        return case(profile, **options)(vars(module)[name])

    return add


def cases(capability=CAPABILITY):
    return all_cases(capability, ["planted_here"])


def ids(capability=CAPABILITY):
    return [item.id for item in cases(capability)[0]]


def left_out(capability=CAPABILITY):
    return [(item.id, item.reason, item.detail) for item in cases(capability)[1]]


class TestIds:
    def test_a_case_is_named_by_profile_and_function(self, declare):
        declare("copies", "kv")
        assert ids() == ["kv.copies"]

    def test_values_stand_in_brackets_as_words(self, declare):
        class Order(Enum):
            FIRST = "NHD"

        labelled, named = SimpleNamespace(label="long-row"), SimpleNamespace(name="softmax")
        declare("a", params={"dtype": lambda c: c.supported_dtypes, "order": tuple(Order)})
        declare("b", params={"shape": ((2, 3),), "what": (labelled, named), "n": (1, -2, 0.5)})
        assert ids() == [
            "core.a[fp32-NHD]",
            "core.a[bf16-NHD]",
            "core.b[2x3-long-row-1]",
            "core.b[2x3-long-row--2]",
            "core.b[2x3-long-row-0.5]",
            "core.b[2x3-softmax-1]",
            "core.b[2x3-softmax--2]",
            "core.b[2x3-softmax-0.5]",
        ]

    def test_the_values_themselves_go_to_the_case(self, declare):
        declare("a", params={"dtype": lambda c: c.supported_dtypes, "order": ("NHD",)})
        assert [item.values for item in cases()[0]] == [
            {"dtype": DType.FP32, "order": "NHD"},
            {"dtype": DType.BF16, "order": "NHD"},
        ]

    @pytest.mark.parametrize("value", [object(), "two words", "a[b]", None, ""])
    def test_what_has_no_word_is_refused(self, declare, value):
        declare("a", params={"value": (value,)})
        with pytest.raises(HarnessError, match="cannot stand in an id"):
            cases()

    def test_an_id_is_there_once(self, declare):
        declare("a", params={"value": (1, "1")})
        with pytest.raises(HarnessError, match=r"core\.a\[1\] is taken twice"):
            cases()

    def test_the_order_is_that_of_profiles_and_declarations(self, declare):
        for name, profile in (("z", "model"), ("y", "kv"), ("x", "core"), ("w", "kv")):
            declare(name, profile)
        assert ids() == ["core.x", "kv.y", "kv.w", "model.z"]


class TestApplicability:
    def test_a_feature_that_is_missing(self, declare):
        declare("a", requires=(Feature.KV_POOL, Feature.GRAPH, Feature.EVENT))
        assert ids() == []
        assert left_out() == [("core.a", "capability_not_declared", "graph, event")]

    def test_a_feature_that_is_there(self, declare):
        declare("a", without=Feature.KV_POOL)
        declare("b", without=Feature.GRAPH)
        assert ids() == ["core.b"]
        assert left_out() == [("core.a", "capability_declared", "kv_pool")]

    def test_values_of_absent_features_are_not_asked_for(self, declare):
        declare("a", requires=(Feature.GRAPH,), params={"x": lambda c: 1 / 0})
        assert ids() == []

    def test_no_values(self, declare):
        declare("a", params={"dtype": lambda c: c.kv.dtypes})
        assert left_out() == [("core.a", "no_values", "dtype")]

    def test_a_condition(self, declare):
        declare("a", needs=lambda c: None if c.peer_access else "no two devices are peers")
        assert left_out() == [("core.a", "condition", "no two devices are peers")]
        assert ids(replace(CAPABILITY, peer_access=frozenset({(0, 1)}))) == ["core.a"]

    @pytest.mark.parametrize(
        ("options", "device_type", "planned"),
        [
            ({"devices": 2}, "cuda", False),
            ({"devices": 2}, "cpu", False),
            ({"world": 2}, "cuda", False),
            ({"world": 2}, "cpu", True),
            ({}, "cuda", True),
        ],
    )
    def test_devices(self, declare, options, device_type, planned):
        declare("a", **options)
        here = replace(CAPABILITY, device_type=device_type)
        assert bool(ids(here)) is planned
        assert ids(replace(here, devices=(DeviceInfo(0, "a"), DeviceInfo(1, "b")))) == ["core.a"]
        if not planned:
            assert left_out(here) == [("core.a", "device_count", "2 are needed, there are 1")]


class TestPlan:
    @pytest.fixture(autouse=True)
    def _cases(self, declare):
        declare("a", "core")
        declare("b", "kv", depth="standard")
        declare("c", "kv", depth="stress")
        declare("d", "graph", without=Feature.GRAPH)
        declare("e", "graph", requires=(Feature.GRAPH,))

    def planned(self, profiles=None, depth="standard"):
        return plan(CAPABILITY, profiles, depth, ["planted_here"])

    @pytest.mark.parametrize(
        ("depth", "names"),
        [
            ("smoke", ["core.a", "graph.d"]),
            ("standard", ["core.a", "kv.b", "graph.d"]),
            ("stress", ["core.a", "kv.b", "kv.c", "graph.d"]),
        ],
    )
    def test_depth(self, depth, names):
        made = self.planned(depth=depth)
        assert [item.id for item in made.cases] == names
        assert len(made.cases) + len(made.not_applicable) == 5

    def test_profiles(self):
        made = self.planned(["kv", "core"])
        assert made.profiles == ("core", "kv")
        assert [item.id for item in made.cases] == ["core.a", "kv.b"]
        assert {item.id: item.reason for item in made.not_applicable} == {
            "graph.e": "capability_not_declared",
            "kv.c": "depth",
            "graph.d": "profile_not_requested",
        }

    def test_refusals_are_no_claims(self):
        assert self.planned().claimed == ("core", "kv")
        assert self.planned().profiles == PROFILES

    def test_the_digest_is_of_what_is_planned(self):
        digests = {self.planned(depth=depth).digest for depth in ("smoke", "standard", "stress")}
        assert len(digests) == 3
        assert self.planned().digest in digests
        assert self.planned().to_dict()["digest"] == self.planned().digest
        text = (
            '{"cases":["core.a"],"depth":"smoke","not_applicable":'
            '[["graph.e","capability_not_declared"],["kv.b","profile_not_requested"],'
            '["kv.c","profile_not_requested"],["graph.d","profile_not_requested"]],'
            '"profiles":["core"],"suite":"2026.1"}'
        )
        digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
        assert self.planned(["core"], "smoke").digest == digest

    @pytest.mark.parametrize("bad", [{"profiles": ["no-such"]}, {"depth": "deep"}])
    def test_what_there_is_not_is_refused(self, bad):
        with pytest.raises(InvalidArgumentError):
            self.planned(**bad)


class TestDeclaration:
    @pytest.mark.parametrize(
        "bad",
        [
            {"profile": "no-such"},
            {"depth": "deep"},
            {"world": 0},
            {"devices": 1.5},
        ],
    )
    def test_bad_options_are_refused(self, declare, bad):
        with pytest.raises(InvalidArgumentError):
            declare("a", **bad)

    def test_a_case_says_what_it_proves(self, declare):
        declare("a", source="    return None\n")
        assert cases()[0][0].text == "It proves something."
        with pytest.raises(InvalidArgumentError, match="no docstring"):
            case("core")(lambda exam: None)

    def test_a_second_one_of_the_name_is_refused(self, declare):
        declare("a")
        with pytest.raises(InvalidArgumentError, match="declares the case a twice"):
            declare("a")


def test_a_module_that_does_not_load_is_named(tmp_path, monkeypatch):
    (tmp_path / "planted_exit.py").write_text("raise SystemExit(0)")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(HarnessError, match="planted_exit"):
        all_cases(CAPABILITY, ["planted_exit"])


def test_the_suite_lists_its_modules_without_importing_them():
    names = suite.modules()
    assert names == tuple(sorted(names))
    assert all(name.startswith("sagellm_backend.conformance.suite.") for name in names)
