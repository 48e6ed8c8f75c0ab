"""Reads this machine's load, memory, disk, network and GPUs, under the names that MLflow gives its system metrics.

MLflow's own monitors are not used because importing them imports MLflow. Source: ``mlflow.system_metrics.metrics``
(MLflow 3.17.2).
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["TOTALS", "Reading", "machine_readers"]

logger = logging.getLogger(__name__)

TOTALS = "network_"  # what begins like this is a total since the first reading; the rest are momentary values

Reading = Iterator[tuple[str, float]]


def machine_readers() -> list[Callable[[], Reading]]:
    """Return what reads the machine's metrics, each time it is called.

    Raises:
        ImportError: psutil is not installed.
    """
    try:
        import psutil
    except ImportError:
        raise ImportError("psutil is not installed (pip install 'tracking-callbacks[system]')") from None
    psutil.cpu_percent()  # its first answer is always 0
    began = psutil.net_io_counters()

    def read() -> Reading:
        memory, disk, network = psutil.virtual_memory(), psutil.disk_usage(os.sep), psutil.net_io_counters()
        yield "cpu_utilization_percentage", psutil.cpu_percent()
        yield "system_memory_usage_megabytes", memory.used / 1e6
        yield "system_memory_usage_percentage", memory.used / memory.total * 100
        yield "disk_usage_percentage", disk.percent
        yield "disk_usage_megabytes", disk.used / 1e6
        yield "disk_available_megabytes", disk.free / 1e6
        yield "network_receive_megabytes", (network.bytes_recv - began.bytes_recv) / 1e6
        yield "network_transmit_megabytes", (network.bytes_sent - began.bytes_sent) / 1e6

    for kind in (_nvidia, _amd):
        try:
            return [read, kind()]
        except (ImportError, OSError, RuntimeError) as error:
            logger.info("no metrics of GPUs (%s): %s", kind.__name__.strip("_"), error)
    return [read]


def _nvidia() -> Callable[[], Reading]:
    nvml: Any = importlib.import_module("pynvml")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise RuntimeError(str(error)) from error
    cards = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]

    def read() -> Reading:
        for number, card in enumerate(cards):
            name = f"gpu_{number}_"
            with contextlib.suppress(nvml.NVMLError):
                memory = nvml.nvmlDeviceGetMemoryInfo(card)
                yield f"{name}memory_usage_percentage", memory.used / memory.total * 100
                yield f"{name}memory_usage_megabytes", memory.used / 1e6
            with contextlib.suppress(nvml.NVMLError):
                yield f"{name}utilization_percentage", nvml.nvmlDeviceGetUtilizationRates(card).gpu
            with contextlib.suppress(nvml.NVMLError):
                power, limit = nvml.nvmlDeviceGetPowerUsage(card), nvml.nvmlDeviceGetEnforcedPowerLimit(card)
                yield f"{name}power_usage_watts", power / 1000
                yield f"{name}power_usage_percentage", power / limit * 100

    return read


def _amd() -> Callable[[], Reading]:
    rocml: Any = importlib.import_module("pyrsmi.rocml")
    rocml.smi_initialize()

    def read() -> Reading:
        for number in range(rocml.smi_get_device_count()):
            name = f"gpu_{number}_"
            used, total = rocml.smi_get_device_memory_used(number), rocml.smi_get_device_memory_total(number)
            yield f"{name}memory_usage_percentage", used / total * 100
            yield f"{name}memory_usage_gigabytes", used / 1e9
            yield f"{name}utilization_percentage", rocml.smi_get_device_utilization(number)
            yield f"{name}power_usage_watts", rocml.smi_get_device_average_power(number)

    return read
