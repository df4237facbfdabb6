"""The whole audit: the ledger of the provider, if there is one, and then every check of promises.sql."""

from msgspec.structs import replace

from orderstream.audit.check import SQL, Breach, Progress, Report, audit, no_report
from orderstream.settings import Settings


def audit_all(
    settings: Settings, ledger_url: str | None, grace_seconds: float, report: Report = no_report
) -> dict[str, list[Breach]]:
    """Return the breaches of each check, at most 100 of each. If the ledger cannot be read, nothing is checked.

    Raises LedgerError, psycopg.Error, and what `report` raises.
    """
    if ledger_url is None:
        return audit(settings.postgres_url, grace_seconds, report)
    # The client of the ledger is slow to load.
    from orderstream.audit.charges import audit_charges  # noqa: PLC0415
    from orderstream.audit.provider_ledger import ledger_at  # noqa: PLC0415

    def in_ledger(progress: Progress) -> None:
        report(replace(progress, checks=1 + len(SQL)))

    def in_database(progress: Progress) -> None:
        report(replace(progress, checks_done=1 + progress.checks_done, checks=1 + progress.checks))

    with ledger_at(ledger_url, settings) as ledger:
        of_ledger = audit_charges(
            settings.postgres_url, ledger, grace_seconds, settings.order_retention_days, in_ledger
        )
    return audit(settings.postgres_url, grace_seconds, in_database) | of_ledger
