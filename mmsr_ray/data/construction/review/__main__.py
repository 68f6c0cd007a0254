"""Human review of a run's candidates, in the browser.

    python -m mmsr_ray.data.construction.review runs/NAME invite ann ben     a link for each annotator
    python -m mmsr_ray.data.construction.review runs/NAME --port 8500        the pages
    python -m mmsr_ray.data.construction.review runs/NAME status             progress and agreement
    python -m mmsr_ray.data.construction.review runs/NAME export             NN_review.parquet, CSV, Label Studio's JSON
    python -m mmsr_ray.data.construction.review runs/NAME import FILE        a CSV or Label Studio's JSON of another place

Reviewed is the last stage file of the run (or --stage FILE); decisions lie beside it in review.sqlite. Exit status: 0 fine, 1 with one
sentence about what is wrong. Only this machine can reach the pages; for others, tunnel (ssh -L 8500:127.0.0.1:8500) or put a proxy
with TLS before it.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from aiohttp import web

from mmsr_ray.data.construction.review import exchange
from mmsr_ray.data.construction.review.access import invite
from mmsr_ray.data.construction.review.agreement import overview
from mmsr_ray.data.construction.review.app import Review
from mmsr_ray.data.construction.review.show import status_text
from mmsr_ray.data.construction.review.stage import OWN, Stage, newest_stage
from mmsr_ray.data.construction.review.store import FILE, Store
from mmsr_ray.data.construction.review.verdicts import ReviewError
from mmsr_ray.data.schema import DataError

logger = logging.getLogger(__name__)
ACTIONS = ("serve", "invite", "status", "export", "import")


def main(arguments: list[str] | None = None) -> int:
    given = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        return _run(given)
    except (ReviewError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n" if error.filename else f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="review", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the folder of a construction, such as runs/fvqa")
    parser.add_argument("action", nargs="?", choices=ACTIONS, default="serve")
    parser.add_argument("names", nargs="*", help="of annotators to invite, or of files to import")
    parser.add_argument("--stage", type=Path, help="the candidates; the last stage file of the run by default")
    parser.add_argument("--store", type=Path, help=f"where decisions lie; RUN/{FILE} by default")
    parser.add_argument("--reviewers", type=int, default=0, help="people who look at each candidate; as before by default, at first 2")
    parser.add_argument(
        "--merge", action="store_true", help="go on with, or take, decisions about another version where candidates are the same"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    parser.add_argument("--port", type=int, default=8500)
    return parser


def _run(given: argparse.Namespace) -> int:
    if bool(given.names) != (given.action in ("invite", "import")):
        raise ReviewError("name the annotators after invite and the files after import; the other actions take no names")
    stage = Stage(given.stage or newest_stage(given.run))
    store = Store(given.store or given.run / FILE)
    try:
        store.begin(stage.contents, given.reviewers, merge=given.merge)
        match given.action:
            case "serve":
                _serve(given, stage, store)
            case "invite":
                for name in given.names:
                    logger.info("%s: http://%s:%d/enter/%s", name, given.host, given.port, invite(store, name))
            case "status":
                logger.info("%s", status_text(overview(store.outcomes(), store.annotators(), store.reviewers)))
            case "export":
                _export(given.run, stage, store)
            case "import":
                for file in map(Path, given.names):
                    decisions = exchange.read_csv(file) if file.suffix == ".csv" else exchange.read_label_studio(file)
                    logger.info("%s: %s", file, store.merge(decisions, partly=given.merge, what=str(file)))
    finally:
        store.close()
        stage.close()
    return 0


def _serve(given: argparse.Namespace, stage: Stage, store: Store) -> None:
    if not store.annotators():
        logger.info("nobody is invited yet: add annotators with `invite NAME` (works while this runs)")
    if given.host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning("listening on %s without TLS: links and cookies can be read on the way, put a proxy with TLS before it", given.host)
    logger.info("%d candidates of %s on http://%s:%d", len(stage.contents), stage.path, given.host, given.port)
    app = Review(store, stage, given.port).app()
    web.run_app(app, host=given.host, port=given.port, access_log=None, print=None)  # links hold tokens: no log of addresses


def _export(run: Path, stage: Stage, store: Store) -> None:
    number = int(stage.path.name[:2]) + 1 if stage.path.name[:2].isdigit() else 99
    counts = exchange.write_candidates(run / f"{number:02d}{OWN}", stage, store)
    logger.info("%s: %s", run / f"{number:02d}{OWN}", ", ".join(f"{count} {status}" for status, count in counts.most_common()))
    logger.info("%s: %d decisions", run / "review.csv", exchange.write_csv(run / "review.csv", store.history()))
    in_force = [decision for *_, decisions in store.outcomes() for decision in decisions]
    tasks = exchange.write_label_studio(run / "review-label-studio.json", stage, in_force)
    (run / f"review-{exchange.LABELS}").write_text(exchange.label_config())
    logger.info("%s: %d tasks, for the interface review-%s", run / "review-label-studio.json", tasks, exchange.LABELS)


if __name__ == "__main__":
    sys.exit(main())
