// One panel on the page: title, help, chart, buttons, and what a screen reader says of it.

import { Chart } from "./chart.js";
import { fresh, make, named, settled, short } from "./dom.js";
import { exportPanel } from "./export.js";
import { kindOf } from "./panels/kinds.js";
import { frameOf } from "./panels/grid.js";
import { hide, Pointer } from "./pointer.js";
import { axesOf, axisTitle, figure as text } from "./times.js";
import { hasAxis } from "./panels/base.js";

const MOST_MARKS = 6;

export class Figure {
  /** @param actions {open(layer), close(), frame(update), zoomed(instance), zoomBy(factor)} */
  constructor(run, view, panel, actions) {
    Object.assign(this, { run, view, panel, actions, context: null, instance: null });
    this.kind = kindOf(panel);
    const title = fresh("title");
    this.title = make("h3", { id: title });
    this.help = make("p", { class: "help" });
    this.note = make("p", { class: "note", hidden: true });
    this.said = make("p", { class: "unseen", role: "status" });
    this.summary = make("div", { class: "unseen" });
    this.box = make("div", { class: "chart", role: "img", tabindex: 0 });
    this.tools = make("div", { class: "tools" });
    this.extras = make("div", { class: "extras" });
    this.element = make(
      "figure",
      { class: "panel", "aria-labelledby": title, "data-testid": `panel-${panel.key}` },
      make("figcaption", {}, this.title, this.tools),
      this.help,
      this.note,
      this.box,
      this.extras,
      this.summary,
      this.said,
    );
    this.element.dataset.run = run;
    if (panel.kind === "raster") this.element.dataset.raster = "";
    for (const format of ["png", "svg", "csv"]) {
      const label = `Save "${short(panel.title, 80)}" as ${format.toUpperCase()}`;
      const on = { click: () => this.save(format) };
      const attributes = { type: "button", "data-testid": `export-${format}`, title: label, on };
      this.tools.append(
        make("button", { ...attributes, "aria-label": label, text: format.toUpperCase() }),
      );
    }
    if (panel.kind === "raster") {
      const on = { click: () => actions.close() };
      this.tools.append(
        make("button", { type: "button", "data-testid": "raster-close", on, text: "Close" }),
      );
    }
    this.chart = new Chart(this.box, (instance) => this.wire(instance));
    const look = () => ({ kind: this.kind, panel: this.panel, context: this.context });
    if (this.kind.hover) {
      this.pointer = new Pointer(this.box, look, this.said, (row) => this.choose(row));
    }
    this.box.addEventListener("keydown", (event) => this.key(event));
  }

  wire(instance) {
    this.instance = instance;
    this.pointer?.wire(instance);
    this.actions.zoomed(instance);
    const redraw = settled(() => this.draw(), 250);
    instance.on("datazoom", (event) => {
      const rows = (event.batch ?? [event]).find((one) => one.dataZoomId === "rows");
      if (rows && Number.isFinite(rows.start)) this.rowZoom = { start: rows.start, end: rows.end };
      redraw(); // ticks that suit what is shown now
    });
  }

  choose(row) {
    const name = this.panel.rows?.[row];
    if (this.panel.opens === "raster" && name !== undefined) this.actions.open(name, this.run);
  }

  key(event) {
    if ("+-=".includes(event.key)) hide();
    if (event.key === "+" || event.key === "=") this.actions.zoomBy(0.7);
    if (event.key === "-") this.actions.zoomBy(1 / 0.7);
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move && this.panel.kind === "lines" && this.instance) {
      event.preventDefault();
      const last = (this.panel.lines[0]?.values.length ?? 1) - 1;
      this.at = Math.max(0, Math.min(last, (this.at ?? (move > 0 ? -1 : last + 1)) + move));
      this.instance.dispatchAction({ type: "showTip", seriesIndex: 0, dataIndex: this.at });
    }
  }

  save(format) {
    exportPanel(format, this.kind, this.panel, this.run, this.view, this.context).catch((why) => {
      this.note.textContent = `Not saved: ${why.message}`;
      this.note.hidden = false;
    });
  }

  /** Show a panel, the same or a newer one. */
  update(panel, context) {
    this.panel = panel;
    this.context = context;
    const { kind } = this;
    this.title.textContent = short(panel.title, 120);
    this.title.title = panel.title;
    this.help.textContent = panel.help ?? "";
    this.help.hidden = !panel.help || context.compact;
    this.element.classList.toggle("compact", Boolean(context.compact));
    const timed = axesOf(panel).length > 0 && panel.kind !== "grid";
    const missing = timed && !hasAxis(axesOf(panel), context);
    this.note.textContent = missing ? `Not recorded against ${axisTitle(context.axis)}.` : "";
    this.note.hidden = !missing;
    this.box.style.height = `${kind.height(panel, context)}px`;
    const range = kind.range(panel);
    const said = range ? `, from ${text(range[0])} to ${text(range[1])}` : "";
    const measure = panel.y ?? panel.z ?? "state of units";
    this.box.setAttribute("aria-label", `${short(panel.title, 200)}: ${short(measure, 80)}${said}`);
    const list = kind.summary(panel, context).map((line) => make("li", { text: line }));
    this.summary.replaceChildren(make("ul", {}, ...list));
    if (panel.opens === "raster") this.offerRows(panel, context);
    if (panel.kind === "grid") this.offerFrames(panel, context);
    this.draw();
  }

  draw() {
    const { kind, panel, context, rowZoom } = this;
    this.chart.draw(() => kind.option(panel, { ...context, rows: rowZoom }));
  }

  /** A list of the rows, for who does not click. */
  offerRows(panel, context) {
    const rows = JSON.stringify(panel.rows);
    if (this.rows !== rows) {
      this.rows = rows;
      const id = fresh("rows");
      const options = panel.rows.map((row, index) => named("option", row, 80, { value: index }));
      this.select = make(
        "select",
        {
          id,
          "data-testid": "open-layer",
          on: {
            change: () => {
              if (this.select.value === "") this.actions.close();
              else this.choose(Number(this.select.value));
            },
          },
        },
        make("option", { value: "", text: "none" }),
        ...options,
      );
      const label = make("label", { for: id, text: `Units of ${short(panel.row, 30)}` });
      this.extras.replaceChildren(label, this.select);
    }
    const open = panel.rows.indexOf(context.layer);
    this.select.value = open < 0 ? "" : String(open);
  }

  offerFrames(panel, context) {
    const { updates } = panel.axis;
    if (!this.slider) {
      const id = fresh("frame");
      this.slider = make("input", {
        id,
        type: "range",
        min: 0,
        step: 1,
        "data-testid": "frame",
        on: {
          input: () => {
            const index = Number(this.slider.value);
            const all = this.panel.axis.updates;
            this.actions.frame(index === all.length - 1 ? null : all[index]);
          },
        },
      });
      this.slid = make("output", { for: id });
      this.extras.replaceChildren(make("label", { for: id, text: "Time" }), this.slider, this.slid);
    }
    this.offerMarks(panel);
    const index = frameOf(panel, context.frame);
    this.slider.max = String(updates.length - 1);
    this.slider.value = String(index);
    const said = `update ${text(updates[index])} (${index + 1} of ${updates.length})`;
    this.slid.textContent = said;
    this.slider.setAttribute("aria-valuetext", said);
  }

  /** What happened meanwhile: each mark moves the slider to its time. */
  offerMarks(panel) {
    const marks = (panel.marks ?? []).filter((mark) => Number.isFinite(mark.at.updates));
    const known = JSON.stringify(marks);
    if (this.marked === known) return;
    this.marked = known;
    for (const old of this.extras.querySelectorAll("button")) old.remove();
    for (const mark of marks.slice(0, MOST_MARKS)) {
      const frame = mark.at.updates;
      const said = `${short(mark.label, 40)}: update ${text(frame)}`;
      const on = { click: () => this.actions.frame(frame) };
      const attributes = { type: "button", title: mark.label, "data-testid": "frame-mark", on };
      this.extras.append(make("button", { ...attributes, text: said }));
    }
  }

  dispose() {
    this.chart.dispose();
    this.element.remove();
  }
}
