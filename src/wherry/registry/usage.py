"""Metering: what each repository holds, moved and was pulled, by day; for bills and for Prometheus."""

import csv
import io
from collections.abc import Iterable, Sequence

from wherry.registry.events import day_of
from wherry.registry.records import Records, Tx
from wherry.wire.http import Response

_COLUMNS = ("repository", "day", "pulls", "pushes", "bytes_out", "bytes_in", "bytes_stored")


async def note_stored(database: Records, now: float) -> None:
    """Note what each repository holds today; asked for from time to time, the last answer of a day stays."""

    def work(db: Tx) -> None:
        db.execute(
            "INSERT INTO meter SELECT r.name, ?, 0, 0, 0, 0, u.bytes FROM repositories r"
            " JOIN usage u ON u.scope = r.name WHERE true"
            " ON CONFLICT (repository, day) DO UPDATE SET stored = excluded.stored",
            (day_of(now),),
        )

    await database.write(work)


async def usage_rows(database: Records, *, since: str = "", until: str = "") -> Sequence[dict[str, object]]:
    """List days from `since` to before `until` (2026-11-22; "" for any)."""
    query = (
        "SELECT repository, day, pulls, pushes, bytes_out, bytes_in, stored FROM meter"
        " WHERE day >= ? AND (? = '' OR day < ?) ORDER BY day, repository"
    )
    return [dict(zip(_COLUMNS, row, strict=True)) for row in await database.rows(query, since, until, until)]


def usage_csv(rows: Iterable[dict[str, object]]) -> Response:
    """The same as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(_COLUMNS)
    writer.writerows(row.values() for row in rows)
    return Response(200, {"Content-Type": "text/csv; charset=utf-8"}, text.getvalue().encode())


async def metrics(database: Records, counts: Iterable[tuple[str, str, float]], freed_bytes: int) -> bytes:
    """Write Prometheus' text form. `counts` are (method, status, n) of the requests since the start."""
    sums = ", ".join(f"CAST(coalesce(sum({one}), 0) AS BIGINT)" for one in ("pulls", "pushes", "bytes_out", "bytes_in"))
    counted = ", ".join(f"(SELECT count(*) FROM {one})" for one in ("repositories", "tags", "manifests", "uploads"))
    totals = await database.row(f"SELECT {counted}, {sums} FROM meter")
    stored = (
        await database.row("SELECT CAST(coalesce(sum(bytes), 0) AS BIGINT) FROM usage WHERE scope NOT LIKE '%/'")
    )[0]
    lines: list[str] = []

    def metric(name: str, kind: str, help: str, *values: tuple[str, float]) -> None:
        lines.extend((f"# HELP wherry_registry_{name} {help}", f"# TYPE wherry_registry_{name} {kind}"))
        lines.extend(f"wherry_registry_{name}{labels} {value:g}" for labels, value in values)

    metric("repositories", "gauge", "Repositories.", ("", totals[0]))
    metric("tags", "gauge", "Tags.", ("", totals[1]))
    metric("manifests", "gauge", "Manifests and indexes, by repository.", ("", totals[2]))
    metric("uploads", "gauge", "Uploads under way.", ("", totals[3]))
    metric("stored_bytes", "gauge", "Bytes of all repositories, each counted by itself.", ("", stored))
    metric("pulls_total", "counter", "Manifests pulled.", ("", totals[4]))
    metric("pushes_total", "counter", "Manifests pushed.", ("", totals[5]))
    metric("sent_bytes_total", "counter", "Bytes of blobs and manifests sent.", ("", totals[6]))
    metric("received_bytes_total", "counter", "Bytes of blobs and manifests received.", ("", totals[7]))
    metric("freed_bytes_total", "counter", "Bytes freed by collections since the start.", ("", freed_bytes))
    labelled = [(f'{{method="{method}",status="{status}"}}', n) for method, status, n in counts]
    metric("requests_total", "counter", "Requests answered since the start.", *labelled)
    return ("\n".join(lines) + "\n").encode()
