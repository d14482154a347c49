// What is known of each run that is shown: its view, its raster, or why there is none.

import { fetchRaster, fetchView } from "./api.js";
import { short } from "./dom.js";

/** The threshold of a list that is nearest to one. */
function nearest(taus, tau) {
  return taus.reduce((best, one) => (Math.abs(one - tau) < Math.abs(best - tau) ? one : best));
}

export class Column {
  /** @param changed called when there is something new to show. */
  constructor(run, changed) {
    Object.assign(this, { run, changed, version: "", taus: [] });
    Object.assign(this, { view: null, shown: "", error: "", loading: false, turn: 0 });
    Object.assign(this, { raster: null, layer: null, rasterError: "", rasterTurn: 0, note: "" });
    this.ready = Promise.resolve();
  }

  /** Fetch a view; what is shown stays until the new one is there. */
  load(name, tau) {
    this.ready = this.fill(name, tau);
    return this.ready;
  }

  async fill(name, tau) {
    this.turn += 1;
    const { turn } = this;
    if (this.shown !== name) this.view = null;
    this.loading = true;
    this.error = "";
    this.changed();
    try {
      const view = await this.fetched(name, tau);
      if (turn !== this.turn) return;
      this.view = view;
      this.shown = name;
      if (view.taus?.length) this.taus = view.taus;
    } catch (why) {
      if (turn !== this.turn) return;
      this.view = null;
      this.error = why.message;
    }
    this.loading = false;
    this.changed();
  }

  /** A run may have other thresholds than its neighbours: it shows the nearest that it has. */
  async fetched(name, tau) {
    const get = (asked) => fetchView(this.run, this.version, name, asked);
    if (tau === null) return get(null);
    if (this.taus.length) return get(nearest(this.taus, tau));
    const own = await get(null); // which thresholds this run has is not yet known
    if (!own.taus?.length || nearest(own.taus, tau) === own.tau) return own;
    return get(nearest(own.taus, tau));
  }

  /** Fetch the units of a layer; null closes them. */
  async open(layer) {
    this.rasterTurn += 1;
    const turn = this.rasterTurn;
    if (layer !== this.layer) this.raster = null;
    this.layer = layer;
    this.rasterError = "";
    this.note = "";
    this.changed();
    if (layer === null) return;
    try {
      await this.ready; // the view knows in which row the layer is
      const map = this.view?.panels.find((panel) => panel.opens === "raster");
      const row = map?.rows.indexOf(layer) ?? -1;
      if (turn !== this.rasterTurn) return;
      if (row < 0) {
        this.raster = null;
        this.note = map ? `This run has no layer ${short(layer)}.` : "";
        this.changed();
        return;
      }
      const raster = await fetchRaster(this.run, this.version, layer, row);
      if (turn === this.rasterTurn) this.raster = raster;
    } catch (why) {
      if (turn !== this.rasterTurn) return;
      this.raster = null;
      this.rasterError = why.message;
    }
    this.changed();
  }

  /** All panels of the view from top to bottom, the raster below the map that opens it. */
  panels() {
    const found = [];
    for (const panel of this.view?.panels ?? []) {
      found.push(panel);
      if (panel.opens === "raster" && this.raster) found.push(this.raster);
    }
    return found;
  }
}
