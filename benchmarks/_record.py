"""What every benchmark script does with its record: keep it, and show it."""

from whet.measure.record import save
from whet.report.tables import arms_table, claims_table, print_table


def finish(record, path):
    save(record, path)
    print_table(arms_table(record))
    if record.claims:
        print_table(claims_table(record))
