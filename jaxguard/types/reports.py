"""The one report: everything that a command, or a call from Python, has found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxguard.errors import VerdictError
from jaxguard.types.audits import Repair, TriggerExample
from jaxguard.types.findings import Finding, Reference, Verdict
from jaxguard.types.ownership import FingerprintMatrix, OwnershipReport


@dataclass(frozen=True)
class Report:
    """Findings, repairs and comparisons; `jaxguard.report` makes a table, JSON, Parquet, SARIF or a page of it.

    Attributes:
        title: headline of the report.
        command: command line that made it.
        findings: one per scanned checkpoint or network, in the order they were named or found.
        repairs: one per method tried.
        ownerships: one per certificate that suspects were judged by.
        matrices: owners against suspects.
        trigger: example pictures, where a trigger is known.
        skipped: `(path, why)` of files that were not opened.
        alpha: accepted error rate of the findings.
        control: what the rate is of: `fdr`, of all that are suspected; `each`, of every checkpoint as if it were alone.
        profile: path and digest of the reference profile; empty without one.
        references: one per cohort that had any.
        seconds: wall-clock time.
        bytes_read: bytes that were read.
        reused: checkpoints whose results an earlier scan had left.
        notes: caveats for the reader, in full sentences.
        interrupted: whether the user stopped the searches for triggers.
        environment: versions, backend, seeds: `{name: value}`.
    """

    title: str
    command: str = ""
    findings: tuple[Finding, ...] = ()
    repairs: tuple[Repair, ...] = ()
    ownerships: tuple[OwnershipReport, ...] = ()
    matrices: tuple[FingerprintMatrix, ...] = ()
    trigger: TriggerExample | None = None
    skipped: tuple[tuple[str, str], ...] = ()
    alpha: float = 0.05
    control: str = "fdr"
    profile: str = ""
    references: tuple[Reference, ...] = ()
    seconds: float = 0.0
    bytes_read: int = 0
    reused: int = 0
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)

    def raise_for(self, *verdicts: Verdict) -> None:
        """Stop a pipeline where a finding, or a suspect judged by a certificate, has one of these verdicts.

        Args:
            *verdicts: such as `Verdict.SUSPECTED`; all but `NO_EVIDENCE` and `NO_TRIGGER` where none is named.

        Raises:
            VerdictError: it names the findings and their reasons.
        """
        passed = Verdict.NO_EVIDENCE, Verdict.NO_TRIGGER
        unwanted = verdicts or tuple(verdict for verdict in Verdict if verdict not in passed)
        judged = [(one.provenance.name, one.verdict, one.reason) for one in self.findings]
        for owner in self.ownerships:
            judged += [(one.suspect, one.verdict, f"copy of {owner.owner}") for one in owner.verifications]
        found = [one for one in judged if one[1] in unwanted]
        if found:
            shown = "; ".join(f"{name}: {verdict} ({reason})" for name, verdict, reason in found[:5])
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise VerdictError(
                f"expected no finding of {', '.join(unwanted)}, got {len(found)} of {len(judged)}: {shown}{more}; "
                "read the report before these networks are used"
            )
