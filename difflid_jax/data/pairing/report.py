"""The findings of a data set's check, and whether a program may use the set."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Severity = Literal["error", "omitted", "warning", "note"]
_SHOWN = 5


@dataclass(frozen=True)
class Finding:
    """One kind of finding; `items` names each case, with its file.

    severity: "error" must be repaired; "omitted" means that pairs were left out, so that a score over the
        rest is not a score on the set; "warning" may be intended; "note" describes how the set was read.
    """

    severity: Severity
    message: str
    items: tuple[str, ...] = ()

    def line(self, shown: int | None = _SHOWN) -> str:
        """The finding on one line, with at most `shown` items (None: all)."""
        if not self.items:
            return self.message
        named = self.items if shown is None else self.items[:shown]
        more = len(self.items) - len(named)
        return f"{self.message}: {'; '.join(named)}{f'; and {more} more' if more else ''}"


@dataclass
class Report:
    """The result of pairing one split of one data set.

    absent: the number of missing images: partners, haze levels, numbers, files of a list.
    """

    title: str
    dataset: str
    split: str | None
    root: str
    folders: tuple[Path, ...]
    hazy_count: int = 0
    clean_count: int = 0
    pair_count: int = 0
    absent: int = 0
    expected: int | None = None
    smallest: tuple[int, int] | None = None
    largest: tuple[int, int] | None = None
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, message: str, items: Iterable[str] = ()) -> None:
        """Append a finding."""
        self.findings.append(Finding(severity, message, tuple(items)))

    def of(self, *severities: Severity) -> Iterator[Finding]:
        """The findings of these severities."""
        return (finding for finding in self.findings if finding.severity in severities)

    @property
    def omitted(self) -> tuple[str, ...]:
        """Every omission, with its file and reason."""
        return tuple(item for finding in self.of("omitted") for item in finding.items)

    @property
    def left_out(self) -> int:
        """The number of pairs missing from the set: unused degraded images and absent ones."""
        return self.hazy_count - self.pair_count + self.absent

    @property
    def clean_bill(self) -> bool:
        """Whether there is no error and no omission."""
        return not any(self.of("error", "omitted"))

    @property
    def summary(self) -> str:
        """The title and the number of pairs, for the caption of a table."""
        pairs = counted(self.pair_count, "pair")
        if self.expected and self.pair_count != self.expected:
            pairs = f"{self.pair_count:,} of {counted(self.expected, 'pair')}"
        left_out = f" ({self.left_out} left out)" if self.left_out else ""
        return f"{self.title}: {pairs}{left_out}"

    def text(self, shown: int | None = _SHOWN) -> str:
        """The report in lines; at most `shown` items of every finding (None: all)."""
        lines = [f"{self.summary}"]
        lines += [f"  folder   {folder}" for folder in self.folders]
        lines += [f"  found    {self.hazy_count} degraded and {self.clean_count} clean images"]
        if self.smallest and self.largest:
            small, large = (f"{width}×{height}" for height, width in (self.smallest, self.largest))
            lines += [f"  sizes    {small}" + (f" to {large}" if small != large else "")]
        for severity in ("note", "warning", "omitted", "error"):
            label = severity.upper() if severity in ("error", "omitted") else severity
            for finding in self.of(severity):
                lines += [f"  {label:8} {finding.message}" + (":" if finding.items else "")]
                named = finding.items if shown is None else finding.items[:shown]
                lines += [f"             {item}" for item in named]
                if len(named) < len(finding.items):
                    lines += [f"             and {len(finding.items) - len(named)} more"]
        return "\n".join(lines)


def counted(count: int, noun: str) -> str:
    """'1 image', '13,990 images'."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def check_or_raise(report: Report, *, allow_missing: bool = False) -> None:
    """Refuse a data set with errors or, unless `allow_missing`, with omissions.

    Raises: ValueError, of one line, naming the first findings and the command for the whole report.
    """
    blocking = list(report.of("error") if allow_missing else report.of("error", "omitted"))
    if not blocking and report.pair_count:
        return
    where = f"{report.root} ({report.title})"
    command = f"python -m difflid_jax.check_data {report.root!r} --dataset {report.dataset}"
    if not report.pair_count:
        blocking = blocking or list(report.of("omitted"))
        reasons = "; ".join(finding.line(2) for finding in blocking[:3]) or "no partners were found"
        raise ValueError(f"{where}: not one usable pair: {reasons}. The whole report: {command}")
    reasons = "; ".join(finding.line(3) for finding in blocking[:3])
    remedy = "Repair the set"
    if not any(report.of("error")):
        remedy += " (evaluation takes --allow-missing)"
    raise ValueError(f"{where}: {reasons}. {remedy}; the whole report: {command}")
