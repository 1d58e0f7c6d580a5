"""`whet reproduce NAME`: the small-scale proof of one paper's claim."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from whet.cli._common import progress, quiet_transformers

app = App(name="reproduce", help_epilogue="Example: `whet reproduce soar --quick`")


@app.default
def reproduce(
    name: str,
    *,
    quick: Annotated[bool, Parameter(help="Fewer problems, for a look; level `smoke`.")] = False,
    out: Annotated[
        Path | None, Parameter(help="Folder of records (default: runs/reproduce).")
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="A text to run on instead of generated data (elas).")
    ] = None,
    page: Annotated[bool, Parameter(help="Write NAME.html beside the record.")] = False,
    json: bool = False,
) -> None:
    """Run a method's proof: baseline, method and control arms in one run; write its record.

    Parameters
    ----------
    name
        A method with a proof, from `whet methods`.
    json
        Print the record as JSON instead of tables.
    """
    import dataclasses
    import sys

    from whet import catalogue
    from whet._io import check_writable
    from whet.errors import InputError, OptionError
    from whet.measure.record import save
    from whet.report.page import write_page
    from whet.report.pages import from_folder
    from whet.report.tables import arms_table, breakdown_tables, claims_table, print_table

    proof = catalogue.resolve(name, "reproduce")
    method = catalogue.get(name)
    if data is not None:
        if "data" not in {f.name for f in dataclasses.fields(proof)}:
            raise OptionError(f"--data: the proof of {method.id} makes its own data")
        if not data.is_file():
            raise InputError(f"--data: there is no file {data}")
        proof = dataclasses.replace(proof, data=data)
    out = out or Path("runs/reproduce")
    check_writable(out)
    quiet_transformers()
    with progress(f"reproduce {method.id}", 1000) as done:
        record = proof.run(
            quick=quick, out=out, on_progress=lambda share: done(round(1000 * share))
        )
    path = out / f"{method.id}.json"
    save(record, path)
    if json:
        sys.stdout.write(record.model_dump_json(indent=1) + "\n")
    else:
        for table in (arms_table(record), *breakdown_tables(record), claims_table(record)):
            print_table(table)
        print(path)
    if page:
        write_page(path.with_suffix(".html"), from_folder(path, title=record.title))
