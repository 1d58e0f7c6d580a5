"""`whet report`: records as tables, plots and one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

app = App(name="report", help_epilogue="Example: `whet report results/ --page report.html`")


@app.default
def report(
    folder: Path = Path("results"),
    *,
    page: Annotated[Path | None, Parameter(help="Write one self-contained HTML page here.")] = None,
    json: bool = False,
) -> None:
    """Show every record below a folder; with --page, also write them as a page.

    Parameters
    ----------
    folder
        A folder of records, or one record.
    json
        Print the records as JSON instead of tables.
    """
    import sys

    from whet.errors import InputError
    from whet.measure.record import find
    from whet.report.page import write_page
    from whet.report.pages import from_folder
    from whet.report.tables import arms_table, breakdown_tables, claims_table, print_table

    found = find(folder)
    if not found:
        raise InputError(
            f"no records in {folder}: `whet reproduce` and `whet benchmark` write them"
        )
    if json:
        import json as json_module

        values = [r.model_dump(mode="json") for _, r in found]
        sys.stdout.write(json_module.dumps(values, indent=1, ensure_ascii=False) + "\n")
    else:
        for _, record in found:
            for table in (arms_table(record), *breakdown_tables(record)):
                print_table(table)
            if record.claims:
                print_table(claims_table(record))
    if page is not None:
        write_page(page, from_folder(folder))
        if not json:
            print(page)
