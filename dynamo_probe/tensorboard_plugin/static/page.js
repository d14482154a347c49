// The page: what the reader chooses, fetched and shown.

import { fetchRuns } from "./api.js";
import { Board } from "./board.js";
import { Column } from "./columns.js";
import { Controls } from "./controls.js";
import { make, settled } from "./dom.js";
import { kindOf } from "./panels/kinds.js";
import { MOST_SHOWN, RunList } from "./runs.js";
import { State } from "./state.js";
import { isDark, onTheme } from "./theme.js";
import { axisNames, extent, startOf } from "./times.js";
import { Zoom } from "./zoom.js";

const POLL = 30_000;

/** The least and the greatest value of the lines of each key, over all runs that are shown. */
function compare(panels) {
  const found = new Map();
  for (const panel of panels.filter((one) => one.kind === "lines")) {
    const range = kindOf(panel).range(panel);
    if (!range || (panel.logarithmic && range[0] <= 0)) continue;
    const [low, high] = found.get(panel.key) ?? range;
    found.set(panel.key, [Math.min(low, range[0]), Math.max(high, range[1])]);
  }
  return found;
}

export class Page {
  constructor(body) {
    this.body = body;
    this.state = new State();
    this.zoom = new Zoom(() => this.controls.unzoom.toggleAttribute("hidden", this.zoom.whole()));
    this.columns = new Map(); // run -> Column
    this.known = new Map(); // run -> what tells its versions apart
    this.runs = new RunList((runs) => this.state.set({ runs }));
    this.controls = new Controls(
      this.state,
      (entries) => this.state.set(entries),
      () => this.zoom.set(0, 100),
    );
    this.board = new Board({
      open: (layer, run) => this.open(layer, run),
      close: () => this.state.set({ layer: null }),
      frame: (frame) => this.state.set({ frame }),
      zoomed: (instance) => this.zoom.join(instance),
      zoomBy: (factor) => this.zoom.by(factor),
      retry: (column) => this.load(column),
      retryRaster: (column) => column.open(this.state.now.layer),
    });
    this.plain = make("div", { class: "plain", role: "status", "data-testid": "message" });
    this.reload = settled(() => this.loadAll(), 150);
    this.frame = 0;
  }

  async start() {
    this.panel = make(
      "div",
      { class: "view", role: "tabpanel", id: this.controls.panelId, tabindex: -1, "data-testid": "view" },
      this.plain,
      this.board.element,
    );
    this.dress();
    this.body.append(this.controls.element, this.runs.element, this.panel);
    onTheme(() => {
      this.dress();
      this.show();
    });
    this.state.listen((now, changed) => this.changed(changed));
    this.state.follow();
    window.addEventListener("focus", () => this.refresh());
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
    setInterval(() => document.hidden || this.refresh(), POLL);
    this.show();
    await this.refresh();
  }

  dress() {
    this.theme = isDark() ? "dark" : "light";
    document.documentElement.dataset.theme = this.theme;
  }

  /** Ask which runs there are, and fetch again what has changed since. */
  async refresh() {
    if (this.asking) return;
    this.asking = true;
    try {
      const { runs, trouble } = await fetchRuns();
      this.failed = "";
      this.known = new Map(runs.map((one) => [one.run, JSON.stringify([one.version, one.step, one.wall])]));
      this.runs.update(runs, trouble);
      const { now } = this.state;
      // A link may name runs that are gone; one that names none of these is as no choice.
      const there = now.runs?.some((run) => this.known.has(run));
      if (runs.length && (now.runs === null || (now.runs.length && !there))) {
        this.state.set({ runs: this.runs.preset() }, { quiet: true });
      }
      this.sync();
    } catch (why) {
      this.failed = why.message;
    }
    this.asking = false;
    this.show();
  }

  changed(changed) {
    if (changed.has("runs")) this.sync();
    if (changed.has("view")) {
      this.zoom.set(0, 100);
      this.loadAll();
    } else if (changed.has("tau")) this.reload();
    if (changed.has("axis")) this.zoom.set(0, 100);
    if (changed.has("layer") || changed.has("view")) this.openAll();
    this.show();
  }

  /** The runs that are shown and there. */
  chosen() {
    const wanted = this.state.now.runs ?? [];
    return wanted.filter((run) => this.known.has(run)).slice(0, MOST_SHOWN);
  }

  /** Make columns for the chosen runs, and fetch what is new or has changed. */
  sync() {
    const chosen = this.chosen();
    this.runs.mark(chosen);
    for (const run of [...this.columns.keys()].filter((one) => !chosen.includes(one))) {
      this.columns.delete(run);
    }
    for (const run of chosen) {
      if (!this.columns.has(run)) this.columns.set(run, new Column(run, () => this.show()));
      const column = this.columns.get(run);
      if (column.version === this.known.get(run)) continue;
      column.version = this.known.get(run);
      this.load(column);
      if (this.layer() !== null) column.open(this.layer());
    }
  }

  layer() {
    return this.state.now.view === "units" ? this.state.now.layer : null;
  }

  load(column) {
    return column.load(this.state.now.view, this.state.now.tau);
  }

  loadAll() {
    for (const column of this.columns.values()) this.load(column);
  }

  openAll() {
    for (const column of this.columns.values()) column.open(this.layer());
  }

  open(layer, run) {
    this.scrollTo = run;
    this.state.set({ layer });
  }

  /** Show what there is, once in a frame however often it is asked. */
  show() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    const { now } = this.state;
    const columns = this.chosen().map((run) => this.columns.get(run)).filter(Boolean);
    const panels = columns.flatMap((column) => column.panels());
    const timed = (column) => column.panels().filter((panel) => panel.kind !== "grid");
    const axes = axisNames(panels);
    const axis = axes.includes(now.axis) ? now.axis : "updates";
    const taus = [...new Set(columns.flatMap((column) => column.view?.taus ?? []))];
    taus.sort((a, b) => a - b);
    const tau = now.tau ?? columns.find((column) => column.view?.tau)?.view.tau ?? null;
    const starts = new Map(columns.map((column) => [column, startOf(column.panels())]));
    const ends = columns
      .map((column) => extent(timed(column), axis, starts.get(column)))
      .filter(Boolean);
    const range = ends.length
      ? [Math.min(...ends.map((one) => one[0])), Math.max(...ends.map((one) => one[1]))]
      : null;
    const compared = compare(panels);
    const shared = {
      compared, axis, range, theme: this.theme, frame: now.frame, layer: this.layer(),
    };
    this.controls.update({ view: now.view, axis, axes, taus, tau });
    this.panel.setAttribute("aria-labelledby", `tab-${now.view}`);
    this.board.update(columns, now.view, (column) => ({
      ...shared,
      start: starts.get(column),
      zoom: this.zoom,
      left: column.panels().some((panel) => panel.kind === "map") ? 138 : 64,
      compact: now.view === "overview",
      tau: now.tau ?? column.view?.tau ?? null,
    }));
    this.message(columns);
    const loading = columns.some((column) => column.loading);
    this.panel.setAttribute("aria-busy", String(loading));
    this.reveal();
  }

  /** What is to say where no run is shown. */
  message(columns) {
    let text = "";
    if (this.failed) text = this.failed;
    else if (!this.known.size) {
      text = this.failed === undefined ? "Loading…" : "No run here has Dynamo data yet.";
    } else if (!columns.length) text = "Choose a run above.";
    if (this.plain.dataset.text === text) return;
    this.plain.dataset.text = text;
    this.plain.hidden = !text;
    this.plain.replaceChildren(make("p", { text }));
    if (!this.failed) return;
    const on = { click: () => this.refresh() };
    this.plain.append(make("button", { type: "button", text: "Try again", "data-testid": "retry", on }));
  }

  /** Bring a raster into view that was just opened. */
  reveal() {
    if (!this.scrollTo) return;
    const found = [...this.board.element.querySelectorAll("[data-raster]")];
    const raster = found.find((one) => one.dataset.run === this.scrollTo);
    if (!raster) return;
    this.scrollTo = null;
    raster.scrollIntoView({ block: "nearest" });
  }
}
