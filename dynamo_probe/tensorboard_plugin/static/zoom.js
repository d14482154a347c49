// Zooming in time, the same in all charts.

export class Zoom {
  /** @param changed called when the part of time that is shown has changed. */
  constructor(changed) {
    Object.assign(this, { start: 0, end: 100, changed, charts: new Set(), busy: false });
  }

  /** Whether all of the time is shown. */
  whole() {
    return this.start <= 0 && this.end >= 100;
  }

  /** Let a chart zoom the others, and be zoomed by them. */
  join(instance) {
    this.charts.add(instance);
    instance.on("datazoom", (event) => {
      if (this.busy) return;
      const found = (event.batch ?? [event]).find((one) => one.dataZoomId === "time");
      if (found && Number.isFinite(found.start)) this.set(found.start, found.end, instance);
    });
  }

  /** Show a part of the time, in percent of its range, in all charts but the one it came from. */
  set(start, end, from = null) {
    if (start === this.start && end === this.end) return;
    Object.assign(this, { start, end, busy: true });
    for (const chart of this.charts) {
      if (chart.isDisposed()) this.charts.delete(chart);
      else if (chart !== from && chart.getOption()?.dataZoom?.length) {
        chart.dispatchAction({ type: "dataZoom", dataZoomId: "time", start, end });
      }
    }
    this.busy = false;
    this.changed();
  }

  /** Show a larger or smaller part around the middle of what is shown. */
  by(factor) {
    const middle = (this.start + this.end) / 2;
    const half = Math.max(((this.end - this.start) / 2) * factor, 0.5);
    this.set(Math.max(0, middle - half), Math.min(100, middle + half));
  }
}
