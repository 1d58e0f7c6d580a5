"""`whet report`: records as tables, plots and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(
    name="report",
    help_epilogue=(
        "Example: `whet report results/ --page report.html`, or "
        "`whet report runs/dense runs/pruned` to compare records on the items they share"
    ),
)


@app.default
def report(
    *folders: Path,
    page: Annotated[Path | None, Parameter(help="Write one self-contained HTML page here.")] = None,
    json: bool = False,
) -> None:
    """Show every record below some folders; with --page, also write them as a page.

    Parameters
    ----------
    folders
        Folders of records, or single records (default: results).
    json
        Print the records as JSON instead of tables.
    """
    import sys

    from whet.report.page import write_page
    from whet.report.pages import find_all, from_folder
    from whet.report.pairs import pair_records
    from whet.report.tables import (
        arms_table,
        breakdown_tables,
        claims_table,
        comparisons_table,
        pairs_table,
        print_table,
    )

    roots = folders or (Path("results"),)
    found = find_all(roots)
    if json:
        import json as json_module

        values = [r.model_dump(mode="json") for _, _, r in found]
        sys.stdout.write(json_module.dumps(values, indent=1, ensure_ascii=False) + "\n")
    else:
        for _, _, record in found:
            for table in (arms_table(record), *breakdown_tables(record)):
                print_table(table)
            if record.comparisons and record.method == "evaluate":
                print_table(comparisons_table(record))
            if record.claims:
                print_table(claims_table(record))
        pairs = pair_records([(path, record) for _, path, record in found])
        if pairs:
            print_table(pairs_table(pairs))
    if page is not None:
        write_page(page, from_folder(*roots))
        if not json:
            print(page)
