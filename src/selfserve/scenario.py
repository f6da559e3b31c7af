"""A scenario: what is served, on what, at which prices and under which physics; read from TOML, frozen.

The file format is described in the README; :func:`load_scenario` reads one and resolves every name against the
catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

NS = 1_000_000_000


def to_ns(seconds: float) -> int:
    """Return whole nanoseconds, rounded half to even (physics rule 1.1)."""
    return round(seconds * NS)


@dataclass(frozen=True)
class RequestClass:
    """A class of requests: latency SLO, accuracy demand, share of the arrivals."""

    name: str
    share: float
    slo_s: float
    min_accuracy_pct: float = 0.0
    mean_accuracy_pct: float | None = None
    accuracy_window_s: float = 3600.0


@dataclass(frozen=True)
class Model:
    """A model: name and ImageNet-1K top-1 accuracy in percent."""

    name: str
    accuracy_pct: float


@dataclass(frozen=True)
class Pool:
    """Identical machines of one resource with a set of resident models, resolved against catalogue and profile."""

    name: str
    resource: str
    market: str
    """``on_demand``, ``spot`` or ``function``."""
    models: tuple[int, ...]
    """Indices into ``Scenario.models``."""
    slots: int
    """Batches that one machine serves at a time (1 for functions and GPUs)."""
    threads: int
    memory_mb: float
    max_machines: int
    usd_per_hour: float
    """Price of a running machine (function pools: of one provisioned container kept for an hour)."""
    usd_per_busy_hour: float
    """Function pools: price of an hour of execution on demand, price_factor included; 0 for machines."""
    usd_per_busy_hour_provisioned: float
    """Function pools: price of an hour of execution on a provisioned container; 0 for machines."""
    usd_per_request: float
    """Function pools: price of an invocation, price_factor included; 0 for machines."""
    service_ns: np.ndarray
    """int64 [M, B + 1]: mean service time of a batch of b = 1..B on a fully busy machine; 0 where the model is not
    resident; column 0 is unused."""
    believed_ns: np.ndarray
    """int64 [M, B + 1]: what policies and IF_FITS believe of it (``believed_factor`` times the truth)."""
    sources: tuple[str, ...]
    """Tag of each model's row in ``models`` order: measured, published or scaled."""

    @property
    def is_function(self) -> bool:
        """Whether the pool's containers appear on demand."""
        return self.market == "function"

    @property
    def max_batch(self) -> int:
        """Largest profiled batch B."""
        return self.service_ns.shape[1] - 1

    def service_s(self, model: int, batch: int = 1) -> float:
        """Return the believed mean service time in seconds (``inf`` where the model is not resident)."""
        ns = int(self.believed_ns[model, batch])
        return ns / NS if ns else float("inf")


@dataclass(frozen=True)
class VmPhysics:
    """Life of a VM: seconds from decision to running, from running to ready, and the least bill."""

    pending_s: float = 17.0
    boot_s: float = 83.0
    boot_spread: float = 0.15
    minimum_bill_s: float = 60.0


@dataclass(frozen=True)
class FunctionPhysics:
    """Cold start, keep-alive and concurrency of functions; ``price_factor`` multiplies their prices."""

    init_s: float = 2.5
    keep_alive_s: float = 600.0
    concurrency: int = 1000
    burst_per_10s: int = 1000
    price_factor: float = 1.0


@dataclass(frozen=True)
class Storm:
    """A time of high spot interruption, seconds from the window's start."""

    start_s: float
    length_s: float
    interruptions_per_hour: float
    refused_share: float = 0.0


@dataclass(frozen=True)
class SpotPhysics:
    """Interruptions of spot machines."""

    interruptions_per_hour: float = 0.02
    notice_s: float = 120.0
    storms: tuple[Storm, ...] = ()


@dataclass(frozen=True)
class ServicePhysics:
    """Spread of service times (coefficient of variation) and what policies believe of their mean."""

    spread: float = 0.1
    believed_factor: float = 1.0


@dataclass(frozen=True)
class CorrectnessPhysics:
    """Which answers of cascades and ensembles are right (physics rule 10.6); both are swept, no one figure is given.

    ``error_correlation`` is the tetrachoric correlation of two models' errors (0: independent). ImageNet models agree
    well beyond what their accuracies explain: Mania et al., NeurIPS 2019; least if trained differently: Gontijo-Lopes
    et al., ICLR 2022. ``confidence_auroc`` is the area under the ROC curve of a model's confidence as a detector of its
    own errors, such as the maximum softmax probability: Hendrycks and Gimpel, ICLR 2017 (0.5: no better than chance).
    """

    error_correlation: float = 0.8
    confidence_auroc: float = 0.85


@dataclass(frozen=True)
class Scenario:
    """Everything a run needs but the trace, the policy and the seed."""

    name: str
    classes: tuple[RequestClass, ...]
    pools: tuple[Pool, ...]
    models: tuple[Model, ...]
    """The models of all pools, in order of first mention."""
    interval_s: float = 10.0
    warmup_s: float = 600.0
    load_machines: float | None = None
    rate_scale: float | None = None
    """Exactly one of ``load_machines`` and ``rate_scale`` is set."""
    prices: str = "aws_us_east_1"
    profile: str = "cpu"
    vm: VmPhysics = VmPhysics()
    function: FunctionPhysics = FunctionPhysics()
    spot: SpotPhysics = SpotPhysics()
    service: ServicePhysics = ServicePhysics()
    correctness: CorrectnessPhysics = CorrectnessPhysics()
    share_drift: float = 0.0
    digest: str = ""
    """SHA-256 of the resolved content: scenario file, prices and profile rows used."""

    @property
    def accuracy_pct(self) -> np.ndarray:
        """Return the models' accuracies, shape [M], percent."""
        return np.array([m.accuracy_pct for m in self.models])


def load_scenario(name_or_path: str, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario and resolve it against catalogue and profile.

    Args:
        name_or_path: a name of :func:`scenario_names` or the path of a TOML file.
        overrides: dotted keys as in the file, list entries by name (``"vm.boot_s": 200.0``,
            ``"classes.strict.slo_s": 1.0``, ``"load_machines": 50``); None removes a key; ``load_machines`` and
            ``rate_scale`` displace each other.

    Raises:
        InputError: naming file and key, with what would be right.
    """
    from selfserve import scenario_file  # it builds this module's classes

    return scenario_file.load(name_or_path, overrides)


def scenario_names() -> list[str]:
    """Return the scenarios that come with the package."""
    from selfserve import scenario_file

    return scenario_file.names()
