// The bar: views, axis of time, threshold, link.

import { fresh, make } from "./dom.js";
import { VIEWS } from "./state.js";
import { axisTitle } from "./times.js";

const NAMES = {
  overview: "Overview", units: "Units", connections: "Connections", heads: "Heads",
};

export class Controls {
  /** @param choose called with the entries of the state that were changed. */
  constructor(state, choose, unzoom) {
    this.state = state;
    this.choose = choose;
    this.panelId = fresh("view");
    this.taus = [];
    this.tabs = VIEWS.map((view) =>
      make("button", {
        type: "button",
        role: "tab",
        id: `tab-${view}`,
        "aria-controls": this.panelId,
        "data-testid": `tab-${view}`,
        text: NAMES[view],
        on: { click: () => choose({ view }) },
      }),
    );
    const tabs = make("div", { role: "tablist", "aria-label": "Views", class: "tabs" }, ...this.tabs);
    tabs.addEventListener("keydown", (event) => this.arrow(event));

    const axis = fresh("axis");
    this.axis = make("select", {
      id: axis,
      "data-testid": "axis",
      on: { change: () => choose({ axis: this.axis.value }) },
    });
    const tau = fresh("tau");
    this.tau = make("input", {
      id: tau,
      type: "range",
      min: 0,
      step: 1,
      "data-testid": "tau",
      on: { input: () => choose({ tau: this.taus[Number(this.tau.value)] }) },
    });
    this.tauText = make("output", { for: tau, "data-testid": "tau-value" });
    this.tauGroup = make(
      "span",
      { class: "control", hidden: true },
      make("label", { for: tau, text: "Threshold" }),
      this.tau,
      this.tauText,
    );
    this.unzoom = make("button", {
      type: "button",
      hidden: true,
      "data-testid": "unzoom",
      text: "Whole time",
      on: { click: unzoom },
    });
    this.link = make("button", {
      type: "button",
      "data-testid": "link",
      text: "Copy link",
      on: { click: () => this.copy() },
    });
    this.address = make("input", {
      class: "address",
      readonly: true,
      hidden: true,
      "aria-label": "Link to this view",
      "data-testid": "address",
    });
    this.said = make("span", { role: "status", class: "said" });
    this.element = make(
      "div",
      { class: "bar" },
      tabs,
      make("span", { class: "control" }, make("label", { for: axis, text: "Time" }), this.axis),
      this.tauGroup,
      this.unzoom,
      this.link,
      this.address,
      this.said,
    );
  }

  /** Show what is chosen, out of what there is. */
  update({ view, axis, axes, taus, tau }) {
    for (const tab of this.tabs) {
      const chosen = tab.id === `tab-${view}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
    }
    const known = JSON.stringify(axes);
    if (this.axes !== known) {
      this.axes = known;
      this.axis.replaceChildren(
        ...axes.map((name) => make("option", { value: name, text: axisTitle(name) })),
      );
    }
    this.axis.value = axis;
    this.taus = taus;
    this.tauGroup.hidden = taus.length < 2;
    this.tau.max = String(Math.max(taus.length - 1, 0));
    const nearest = taus.reduce(
      (best, one, index) => (Math.abs(one - tau) < Math.abs(taus[best] - tau) ? index : best),
      0,
    );
    this.tau.value = String(nearest);
    this.tauText.textContent = taus.length ? `tau = ${taus[nearest]}` : "";
    this.tau.setAttribute("aria-valuetext", this.tauText.textContent);
  }

  arrow(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    const count = this.tabs.length;
    const now = VIEWS.indexOf(this.state.now.view);
    const next = Number.isFinite(move) ? (now + move + count) % count : move < 0 ? 0 : count - 1;
    this.tabs[next].focus();
    this.choose({ view: VIEWS[next] });
  }

  async copy() {
    const link = this.state.link();
    this.state.write();
    this.address.value = link;
    try {
      await navigator.clipboard.writeText(link);
      this.said.textContent = "Link copied";
      this.address.hidden = true;
    } catch {
      // Not every browser lets a frame write the clipboard: then the reader copies it.
      this.address.hidden = false;
      this.address.select();
      this.said.textContent = "Copy this link";
    }
    setTimeout(() => {
      this.said.textContent = "";
    }, 4000);
  }
}
