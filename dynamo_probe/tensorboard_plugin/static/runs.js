// The list of runs: which are shown.

import { fresh, make, named, short } from "./dom.js";

export const MOST_SHOWN = 8;
const FIRST_SHOWN = 3;

export class RunList {
  /** @param choose called with the names of the runs that are to be shown. */
  constructor(choose) {
    this.choose = choose;
    this.all = [];
    this.chosen = [];
    const id = fresh("filter");
    this.filter = make("input", {
      id,
      type: "search",
      placeholder: "Filter runs",
      autocomplete: "off",
      "data-testid": "run-filter",
      on: { input: () => this.sift() },
    });
    this.count = make("span", { class: "count", role: "status" });
    this.list = make("div", { class: "run-list", "data-testid": "run-list" });
    this.trouble = make("ul", { class: "trouble", hidden: true, "data-testid": "trouble" });
    this.summary = make("summary", { text: "Runs" });
    this.element = make(
      "details",
      { class: "runs", open: true },
      this.summary,
      make(
        "fieldset",
        {},
        make("legend", { class: "unseen", text: "Runs that are shown" }),
        make("label", { for: id, class: "unseen", text: "Filter runs" }),
        this.filter,
        this.count,
        this.list,
      ),
      this.trouble,
    );
    this.boxes = new Map();
  }

  /** The runs to show where nobody has chosen. */
  preset() {
    return this.all.slice(0, FIRST_SHOWN).map((one) => one.run);
  }

  /** Show which runs there are, and what could not be read. */
  update(runs, trouble) {
    const names = JSON.stringify(runs.map((one) => one.run));
    this.all = runs;
    if (names !== this.names) {
      this.names = names;
      this.boxes.clear();
      const labels = runs.map(({ run }) => {
        const box = make("input", { type: "checkbox", on: { change: () => this.changed() } });
        this.boxes.set(run, box);
        const label = make("label", { title: run }, box, named("span", run, 48));
        label.dataset.run = run;
        return label;
      });
      this.list.replaceChildren(...labels);
      this.sift();
    }
    this.trouble.replaceChildren(
      ...(trouble ?? []).map(({ run, text }) =>
        make("li", {}, named("strong", run, 80), `: ${short(text, 400)}`),
      ),
    );
    this.trouble.hidden = !trouble?.length;
    this.mark(this.chosen);
  }

  /** Tick the runs that are shown. */
  mark(chosen) {
    this.chosen = chosen;
    const full = chosen.length >= MOST_SHOWN;
    for (const [run, box] of this.boxes) {
      box.checked = chosen.includes(run);
      box.disabled = full && !box.checked;
      box.parentElement.classList.toggle("off", box.disabled);
    }
    const limit = full ? ", the most at once" : "";
    this.count.textContent = `${chosen.length} of ${this.all.length} shown${limit}`;
    this.summary.textContent = `Runs (${chosen.length} of ${this.all.length})`;
  }

  changed() {
    const ticked = [...this.boxes].filter(([, box]) => box.checked).map(([run]) => run);
    this.choose(ticked.slice(0, MOST_SHOWN));
  }

  sift() {
    const wanted = this.filter.value.trim().toLowerCase();
    for (const label of this.list.children) {
      label.hidden = Boolean(wanted) && !label.dataset.run.toLowerCase().includes(wanted);
    }
  }
}
