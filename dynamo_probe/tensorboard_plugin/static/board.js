// The panels of all shown runs: one column a run, panels of one key in one row.

import { make, named, short } from "./dom.js";
import { Figure } from "./figure.js";
import { kindOf } from "./panels/kinds.js";

const WIDE = "minmax(min(400px, calc(100vw - 48px)), 1fr)";
const NARROW = "minmax(200px, 260px)"; // a run that has nothing of this view

/** The keys of all columns, in an order that agrees with each of them as far as it can. */
export function merged(lists) {
  const order = [];
  for (const list of lists) {
    const first = list.map((key) => order.indexOf(key)).find((at) => at >= 0);
    let next = first ?? order.length; // where a key goes that no known one comes before
    for (const key of list) {
      const at = order.indexOf(key);
      if (at < 0) order.splice(next, 0, key);
      next = (at < 0 ? next : at) + 1;
    }
  }
  return order;
}

export class Board {
  /** @param actions those of figures, and {retry(column), retryRaster(column)}. */
  constructor(actions) {
    this.actions = actions;
    this.element = make("div", { class: "board" });
    this.figures = new Map();
    this.heads = new Map();
  }

  /**
   * Show columns.
   *
   * @param columns what to show.
   * @param view the name of the view.
   * @param contextOf makes of a column what its panels are drawn with.
   */
  update(columns, view, contextOf) {
    const shown = [];
    const place = (element, row, column) => {
      element.style.gridRow = String(row + 1);
      element.style.gridColumn = String(column + 1);
      shown.push([row, column, element]);
    };
    const lists = columns.map((column) => column.panels().map((panel) => panel.key));
    const keys = merged(lists);
    const used = new Set();
    columns.forEach((column, at) => {
      const context = contextOf(column);
      place(this.head(column), 0, at);
      for (const panel of column.panels()) {
        const id = JSON.stringify([column.run, view, panel.kind, panel.key]);
        if (!kindOf(panel) || used.has(id)) continue;
        used.add(id);
        if (!this.figures.has(id)) {
          this.figures.set(id, new Figure(column.run, view, panel, this.actions));
        }
        const figure = this.figures.get(id);
        figure.update(panel, context);
        place(figure.element, 1 + keys.indexOf(panel.key), at);
      }
    });
    for (const [id, figure] of this.figures) {
      if (used.has(id)) continue;
      figure.dispose();
      this.figures.delete(id);
    }
    const runs = new Set(columns.map((column) => column.run));
    for (const run of [...this.heads.keys()].filter((one) => !runs.has(one))) this.heads.delete(run);
    const widths = columns.map((column) => (column.panels().length ? WIDE : NARROW));
    this.element.style.gridTemplateColumns = widths.join(" ");
    this.arrange(shown.sort((a, b) => a[0] - b[0] || a[1] - b[1]).map((one) => one[2]));
  }

  /** Put elements in order without touching those that are there already: focus stays. */
  arrange(elements) {
    const wanted = new Set(elements);
    for (const child of [...this.element.children]) if (!wanted.has(child)) child.remove();
    elements.forEach((element, index) => {
      const there = this.element.children[index];
      if (there !== element) this.element.insertBefore(element, there ?? null);
    });
  }

  /** The top of a column: the run's name, its state in words, what is wrong or missing. */
  head(column) {
    const { run, view } = column;
    if (!this.heads.has(run)) {
      const made = make("section", { class: "head", "data-testid": "run-head" });
      made.dataset.run = run;
      this.heads.set(run, made);
    }
    const head = this.heads.get(run);
    head.setAttribute("aria-busy", String(column.loading));
    const signature = JSON.stringify([
      column.loading && !view, column.error, column.rasterError, column.layer, column.note,
      view?.sentences, view?.alerts, view?.empty, view?.trouble,
    ]);
    if (head.dataset.signature === signature) return head;
    const open = head.querySelector("details")?.open ?? false;
    head.dataset.signature = signature;
    head.replaceChildren(
      named("h2", run, 64),
      ...(column.loading && !view ? [make("p", { class: "quiet", text: "Loading…" })] : []),
      ...this.failure(column.error, () => this.actions.retry(column)),
      ...this.failure(column.rasterError, () => this.actions.retryRaster(column)),
      ...(view?.trouble
        ? [make("p", { class: "error", "data-testid": "trouble", text: short(view.trouble, 600) })]
        : []),
      ...(column.note ? [make("p", { class: "quiet", text: column.note })] : []),
      ...(view?.empty ? [make("p", { class: "empty", "data-testid": "empty", text: view.empty })] : []),
      ...this.sentences(view),
      ...this.alerts(view, open),
    );
    return head;
  }

  failure(text, retry) {
    if (!text) return [];
    const button = make("button", {
      type: "button", text: "Try again", "data-testid": "retry", on: { click: retry },
    });
    const said = make("span", { text: short(text, 600) });
    return [make("p", { class: "error", role: "alert", "data-testid": "error" }, said, " ", button)];
  }

  sentences(view) {
    if (!view?.sentences?.length) return [];
    const lines = view.sentences.map((one) => make("li", { text: short(one, 600) }));
    return [make("ul", { class: "sentences", "data-testid": "sentences" }, ...lines)];
  }

  alerts(view, open) {
    const alerts = view?.alerts ?? [];
    if (!alerts.length) return [];
    const lines = alerts.map((one) =>
      make(
        "li",
        {},
        make("strong", { text: `${short(one.kind, 30)} at update ${one.update?.toLocaleString("en")}` }),
        " ",
        named("span", one.subject ?? "", 60),
        one.text ? `: ${short(one.text, 300)}` : "",
      ),
    );
    const count = `${alerts.length} ${alerts.length === 1 ? "alert" : "alerts"}`;
    const newest = alerts[0];
    const title = `${count}, the newest at update ${newest.update?.toLocaleString("en")}`;
    return [
      make(
        "details",
        { class: "alerts", open: open || null, "data-testid": "alerts" },
        make("summary", { text: title }),
        make("ol", {}, ...lines),
      ),
    ];
  }
}
