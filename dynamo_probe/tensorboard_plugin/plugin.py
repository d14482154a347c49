"""The server's side of the tab: it reads logs through TensorBoard and hands out views as JSON.

Names that come with a request are looked up among those that there are; none becomes a path.
"""

from __future__ import annotations

import functools
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import PurePosixPath
from typing import Any

from tensorboard import plugin_util
from tensorboard.data.provider import RunTagFilter
from tensorboard.plugins.base_plugin import FrontendMetadata, TBContext, TBPlugin
from werkzeug.wrappers import Request, Response

from dynamo_probe.logs.as_json import plain
from dynamo_probe.logs.reading import PLUGIN, TAG, TWO_WRITERS, of_one_run
from dynamo_probe.logs.runlog import RunLog, Unreadable, unpacked
from dynamo_probe.logs.units_view import raster
from dynamo_probe.logs.views import VIEWS, view

_log = logging.getLogger(__name__)

_KEPT = 16
"""Runs whose newest log is kept unpacked; each takes some megabytes."""
_CHECKED = 20
"""Logs of a run that are looked at to see who wrote them."""
_TYPES = {
    ".js": "text/javascript",
    ".css": "text/css",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_STATIC = "static"


class _Refused(Exception):
    """Raised for a request that cannot be answered; carries the status and the reason."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class DynamoPlugin(TBPlugin):
    """The *Dynamo* tab; TensorBoard finds it by its entry point."""

    plugin_name = PLUGIN

    def __init__(self, context: TBContext) -> None:
        """Made by TensorBoard."""
        super().__init__(context)
        self._provider: Any = context.data_provider
        self._logs: OrderedDict[tuple[str, str, int, float], tuple[RunLog, str]] = OrderedDict()
        self._lock = threading.Lock()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return what is served below `/data/plugin/dynamo_probe`."""
        return {
            "/runs": self._app(self._runs),
            "/overview": self._app(self._overview),
            "/view": self._app(self._view),
            "/raster": self._app(self._raster),
            f"/{_STATIC}/*": Request.application(self._file),
        }

    def is_active(self) -> bool:
        """Leave it to TensorBoard, which shows the tab when there are data of this plugin."""
        return False

    def frontend_metadata(self) -> FrontendMetadata:
        """Say which module draws the tab, and what the tab is called."""
        return FrontendMetadata(
            es_module_path=f"/{_STATIC}/index.js", tab_name="Dynamo", disable_reload=False
        )

    # --- what is asked for ------------------------------------------------------------------

    def _runs(self, request: Request) -> dict[str, Any]:
        found = [
            {"run": run, "step": one.max_step, "wall": one.max_wall_time}
            for run, one in sorted(self._series(request).items())
        ]
        return {"runs": found, "views": list(VIEWS)}

    def _overview(self, request: Request) -> dict[str, Any]:
        views: dict[str, Any] = {}
        trouble: list[dict[str, str]] = []
        for run in request.args.getlist("run"):
            try:
                log, text = self._newest(request, run)
                views[run] = plain(view(log, "overview"))
                if text:
                    trouble.append({"run": run, "text": text})
            except _Refused as reason:
                trouble.append({"run": run, "text": str(reason)})
        return {"views": views, "trouble": trouble}

    def _view(self, request: Request) -> dict[str, Any]:
        log, _ = self._newest(request, _one(request, "run"))
        return plain(view(log, _one(request, "name"), _tau(request, log)))

    def _raster(self, request: Request) -> dict[str, Any]:
        log, _ = self._newest(request, _one(request, "run"))
        if (row := request.args.get("row")) is None:
            return plain(raster(log, _one(request, "layer")))
        # By its place: a name of 10,000 characters does not go into an address.
        layers = list(log.units)
        if not row.isdecimal() or int(row) >= len(layers):
            raise _Refused(400, f"row={row[:20]!r}; give a whole number below {len(layers)}")
        return plain(raster(log, layers[int(row)]))

    # --- where it comes from ----------------------------------------------------------------

    def _series(self, request: Request) -> dict[str, Any]:
        """Return what TensorBoard knows of each run's log: {run: its time series}."""
        listed = self._provider.list_tensors(
            plugin_util.context(request.environ),
            experiment_id=plugin_util.experiment_id(request.environ),
            plugin_name=PLUGIN,
        )
        return {run: tags[TAG] for run, tags in listed.items() if TAG in tags}

    def _newest(self, request: Request, run: str) -> tuple[RunLog, str]:
        """Return the newest log of a run, and what there is to say about who wrote it."""
        series = self._series(request).get(run)
        if series is None:
            raise _Refused(404, f"there is no log of a run {run[:200]!r}")
        experiment = plugin_util.experiment_id(request.environ)
        key = (experiment, run, series.max_step, series.max_wall_time)
        with self._lock:
            if key in self._logs:
                self._logs.move_to_end(key)
                return self._logs[key]
        read = self._provider.read_tensors(
            plugin_util.context(request.environ),
            experiment_id=experiment,
            plugin_name=PLUGIN,
            downsample=_CHECKED,
            run_tag_filter=RunTagFilter([run], [TAG]),
        )
        data = read.get(run, {}).get(TAG, [])
        if not data:
            raise _Refused(404, "TensorBoard has not read this run's log yet; try again")
        raws = [_content(one) for one in data]
        try:
            found = unpacked(raws[-1]), "" if of_one_run(raws) else TWO_WRITERS
        except Unreadable as error:
            raise _Refused(422, str(error)) from error
        with self._lock:
            self._logs[key] = found
            while len(self._logs) > _KEPT:
                self._logs.popitem(last=False)
        return found

    # --- how it is served -------------------------------------------------------------------

    def _app(self, answer: Callable[[Request], dict[str, Any]]) -> Any:
        def app(request: Request) -> Response:
            try:
                return _json(answer(request))
            except _Refused as reason:
                return _json({"error": str(reason)}, reason.status)
            except ValueError as error:  # a view, a threshold or a layer that there is not
                return _json({"error": str(error)}, 400)
            except Exception:
                _log.exception("a request for %s failed", request.path)
                return _json({"error": "this view failed; TensorBoard's log says why"}, 500)

        return Request.application(app)

    def _file(self, request: Request) -> Response:
        name = request.path.partition(f"/{_STATIC}/")[2]
        found = static_files().get(name)
        if found is None:
            return _json({"error": "there is no such file"}, 404)
        return _response(found, _TYPES.get(PurePosixPath(name).suffix, "text/plain"))


def _one(request: Request, name: str) -> str:
    value = request.args.get(name)
    if value is None:
        raise _Refused(400, f"give {name}=")
    return value


def _tau(request: Request, log: RunLog) -> float | None:
    """Return the threshold that is asked for; None where the log has none, or none was given."""
    text = request.args.get("tau")
    if not text or not log.units:
        return None
    try:
        return float(text)
    except ValueError:
        raise _Refused(400, f"tau={text[:50]!r} is not a number") from None


def _content(datum: Any) -> bytes:
    """Return the bytes of a time series' point; b"" where it holds something else."""
    value = datum.numpy.item() if datum.numpy.size == 1 else b""
    return value if isinstance(value, bytes) else b""


@functools.cache
def static_files() -> Mapping[str, bytes]:
    """Return the files of the page: {path below `static`: content}."""
    found: dict[str, bytes] = {}
    waiting = [("", resources.files("dynamo_probe.tensorboard_plugin") / _STATIC)]
    while waiting:
        prefix, folder = waiting.pop()
        for part in folder.iterdir():
            if part.is_dir():
                waiting.append((f"{prefix}{part.name}/", part))
            else:
                found[prefix + part.name] = part.read_bytes()
    return found


def _json(value: dict[str, Any], status: int = 200) -> Response:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return _response(text.encode(), "application/json", status)


def _response(content: bytes, kind: str, status: int = 200) -> Response:
    response = Response(content, status, content_type=f"{kind}; charset=utf-8")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Cache-Control"] = "no-cache"
    return response
