"""System metrics have the names and units of MLflow's, without MLflow."""

from __future__ import annotations

import importlib
import sys
import types

import pytest

from tracking_callbacks._delivery.machine import machine_readers


def mlflows(kind: str, monitor: str) -> dict[str, float]:
    """Return what a monitor of MLflow's reads."""
    module = importlib.import_module(f"mlflow.system_metrics.metrics.{kind}_monitor")
    reading = getattr(importlib.reload(module), monitor)()
    reading.collect_metrics()
    return dict(reading.aggregate_metrics())


def ours() -> dict[str, float]:
    return {name: value for read in machine_readers() for name, value in read()}


def test_the_machine_is_read_under_mlflows_names() -> None:
    theirs = mlflows("cpu", "CPUMonitor") | mlflows("disk", "DiskMonitor") | mlflows("network", "NetworkMonitor")
    mine = ours()

    assert {name for name in mine if not name.startswith("gpu_")} == set(theirs)
    for name in ("system_memory_usage_megabytes", "disk_usage_megabytes", "disk_usage_percentage"):
        assert mine[name] == pytest.approx(theirs[name], rel=0.2)


class Nvidia(types.ModuleType):
    """NVIDIA's library on a machine with two cards, of which one tells nothing of its power; there is none here."""

    class NVMLError(Exception):
        pass

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        return number

    def nvmlDeviceGetMemoryInfo(self, card: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(used=3e9 + card, total=12e9)

    def nvmlDeviceGetUtilizationRates(self, card: int) -> types.SimpleNamespace:
        return types.SimpleNamespace(gpu=40 + card)

    def nvmlDeviceGetPowerUsage(self, card: int) -> int:
        if card == 1:
            raise self.NVMLError("not supported")
        return 150_000

    def nvmlDeviceGetEnforcedPowerLimit(self, card: int) -> int:
        return 300_000


def test_nvidia_cards_are_read_as_mlflow_reads_them(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", Nvidia("pynvml"))
    theirs = mlflows("gpu", "GPUMonitor")

    assert {name: round(value, 1) for name, value in ours().items() if name.startswith("gpu_")} == theirs
    assert len(theirs) == 8


class Amd(types.ModuleType):
    """AMD's library on a machine with one card."""

    def smi_initialize(self) -> None:
        pass

    def smi_shutdown(self) -> None:
        pass

    def smi_get_device_count(self) -> int:
        return 1

    def smi_get_device_memory_used(self, number: int) -> float:
        return 4e9

    def smi_get_device_memory_total(self, number: int) -> float:
        return 16e9

    def smi_get_device_utilization(self, number: int) -> int:
        return 70

    def smi_get_device_average_power(self, number: int) -> float:
        return 120.0


def test_amd_cards_are_read_as_mlflow_reads_them(monkeypatch) -> None:
    package, rocml = types.ModuleType("pyrsmi"), Amd("pyrsmi.rocml")
    package.rocml = rocml  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "pyrsmi", package)
    monkeypatch.setitem(sys.modules, "pyrsmi.rocml", rocml)
    theirs = mlflows("rocm", "ROCMMonitor")
    del theirs["gpu_0_power_usage_percentage"]  # of 500 watts, which MLflow takes for the limit of every card

    assert {name: value for name, value in ours().items() if name.startswith("gpu_")} == theirs
