"""What discovery reads: the backend's name, and whether its device is here."""

from sagellm_backend import frameworks
from sagellm_backend.devices import DeviceInfo
from sagellm_backend.spec import BackendSpec, Probe


def probe() -> Probe:
    """The devices, or the reason why not; imports no framework and starts no driver."""
    # TODO: look for what your driver shows in the file system, such as /dev/acme0.
    if not frameworks.is_installed("simdev"):
        return Probe.absent("simdev is not installed", "pip install tools/simdev")
    return Probe.available(*(DeviceInfo(n, f"simulated torch device {n}") for n in range(2)))


SPEC = BackendSpec(
    name="acme",
    device_type="simdev",  # TODO: your device's word in torch, such as "npu"
    priority=150,  # above cpu (100) and below kunlun (200); see sagellm_backend.spec.PRIORITIES
    automatic=False,  # TODO: leave this away when "auto" may choose your device
    array_framework="torch",
    probe=probe,
    factory="acme_backend.provider:AcmeProvider",
    contract=(1, 0),
    package="acme-backend",
)
