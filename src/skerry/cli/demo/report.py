"""What one run of the demo measured: the numbers behind its last table, also written as JSON.

Lives here: the figures' types and their rendering. Every figure is put in by the story where it was measured.
"""

from __future__ import annotations

from typing import Any

import msgspec

from skerry.api import quantity
from skerry.cli import output


class DeviceResult(msgspec.Struct, kw_only=True):
    """One device at the end of the first rollout."""

    name: str
    hardware_class: str
    engine: str
    """What executes the variant there."""
    variant: str
    golden_accuracy: float
    """Measured on the device by the agent, on the golden samples."""
    test_accuracy: float
    """Share of real test images it answered right when asked through the hub."""
    test_images: int
    latency_p95_ms: float
    peak_memory_bytes: int
    fetched_bytes: int
    install_seconds: float


class BadVersion(msgspec.Struct, kw_only=True):
    """What stopped the bad version."""

    outcome: str
    message: str
    gate: str
    measured: float
    threshold: float
    devices_touched: list[str]
    seconds_to_restore: float
    """From `apply` of the bad version to the canary running the good one again."""


class Fault(msgspec.Struct, kw_only=True):
    """One fault that was injected, and how it ended."""

    device: str
    fault: str
    state_at_fault: str
    runs: str
    """The model version it serves in the end."""
    seconds: float
    """From the fault's end (restart, line mended) to running the wanted revision."""


class Update(msgspec.Struct, kw_only=True):
    """What the update to v1.1 cost one device on the wire."""

    name: str
    hardware_class: str
    variant: str
    full_bytes: int
    """Of the variant's file, that a device without the version before would have fetched."""
    fetched_bytes: int
    """Deltas and golden samples, as the device counted them."""
    saved_bytes: int
    seconds: float
    """Of the whole rollout."""


class Report(msgspec.Struct, kw_only=True):
    """Everything measured in one run."""

    baseline_accuracy: float = 0.0
    variants: list[dict[str, Any]] = []
    rejected: list[dict[str, Any]] = []
    rollout_seconds: float = 0.0
    waves: list[dict[str, Any]] = []
    devices: list[DeviceResult] = []
    updates: list[Update] = []
    bad_version: BadVersion | None = None
    faults: list[Fault] = []
    total_seconds: float = 0.0


def print_devices(report: Report) -> None:
    """Print what runs where, and how well."""
    rows = [
        (
            d.name,
            d.hardware_class,
            d.engine,
            d.variant,
            f"{d.golden_accuracy:.4f}",
            f"{d.test_accuracy:.4f}",
            f"{d.latency_p95_ms:.2f} ms",
            quantity.human_bytes(d.peak_memory_bytes),
            quantity.human_bytes(d.fetched_bytes),
            f"{d.install_seconds:.2f} s",
        )
        for d in report.devices
    ]
    images = report.devices[0].test_images if report.devices else 0
    columns = (
        "DEVICE",
        "CLASS",
        "ENGINE",
        "VARIANT",
        "GOLDEN",
        f"TEST({images})",
        "P95",
        "MEMORY",
        "FETCHED",
        "INSTALL",
    )
    output.print_table(columns, rows)


def print_updates(report: Report) -> None:
    """Print what an update cost each device on the wire."""
    rows = [
        (
            one.name,
            one.variant,
            quantity.human_bytes(one.full_bytes),
            quantity.human_bytes(one.fetched_bytes),
            quantity.human_bytes(one.saved_bytes),
            f"{one.saved_bytes / one.full_bytes:.0%}",
        )
        for one in report.updates
    ]
    output.print_table(("DEVICE", "VARIANT", "MODEL", "FETCHED", "SAVED", "OF THE MODEL"), rows)


def print_summary(report: Report) -> None:
    """Print what was proved, each line with the number that shows it."""
    bad, accuracies = report.bad_version, [d.test_accuracy for d in report.devices]
    classes, engines, variants = (
        len({getattr(device, field) for device in report.devices}) for field in ("hardware_class", "engine", "variant")
    )
    lines = [
        (
            f"{len(report.devices)} devices serve the good version, reached in {len(report.waves)} waves",
            f"{report.rollout_seconds:.1f} s",
        ),
        (
            f"{variants} variants on {engines} engines chosen for {classes} hardware classes, "
            "test accuracy on the devices",
            f"{min(accuracies):.4f} to {max(accuracies):.4f}",
        ),
    ]
    if report.updates:
        fetched, saved = (sum(getattr(one, f"{what}_bytes") for one in report.updates) for what in ("fetched", "saved"))
        lines.append(
            (
                "bytes the update to the tuned v1.1 sent to all devices, and those that did not have to be sent",
                f"{quantity.human_bytes(fetched)}, {quantity.human_bytes(saved)}",
            )
        )
    if bad is not None:
        lines += [
            (
                f"bad version stopped by gate {bad.gate}, measured on the device",
                f"{bad.measured:.4f} < {bad.threshold:.4f}",
            ),
            ("devices the bad version touched, of all", f"{len(bad.devices_touched)} of {len(report.devices)}"),
            ("good version back on the canary, counted from apply", f"{bad.seconds_to_restore:.1f} s"),
        ]
    lines += [
        (f"{fault.device}: {fault.fault} ({fault.state_at_fault}); converged after", f"{fault.seconds:.1f} s")
        for fault in report.faults
    ]
    lines.append(("the whole demo", f"{report.total_seconds:.0f} s"))
    output.print_table(("WHAT WAS PROVED", "MEASURED"), lines)
