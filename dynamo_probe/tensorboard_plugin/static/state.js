// What the reader has chosen, kept in the address so that a link restores it.

const TAB = "dynamo_probe";
const ENTRY = "p.dynamo_probe.state";

export const VIEWS = ["overview", "units", "connections", "heads"];

const EMPTY = {
  runs: null, // names; null until the list of runs is there
  view: "overview",
  axis: "updates",
  tau: null, // null: the run's own
  layer: null, // the layer whose raster is open
  frame: null, // the update that grids show; null: the newest
};

/** The window whose address the reader sees: TensorBoard's, or our own where we may not touch it. */
function outer() {
  try {
    if (window.parent !== window && window.parent.location.hash !== undefined) return window.parent;
  } catch {
    // Another origin.
  }
  return window;
}

function parts() {
  return outer().location.hash.replace(/^#/, "").split("&");
}

/** Take from an unknown value what is a state; a link may hold anything. */
function checked(found) {
  const text = (value) => (typeof value === "string" ? value : null);
  const number = (value) => (Number.isFinite(value) ? value : null);
  if (typeof found !== "object" || found === null) return { ...EMPTY };
  return {
    runs: Array.isArray(found.runs) && found.runs.every((run) => text(run) !== null)
      ? found.runs
      : null,
    view: VIEWS.includes(found.view) ? found.view : EMPTY.view,
    axis: text(found.axis) ?? EMPTY.axis,
    tau: number(found.tau),
    layer: text(found.layer),
    frame: number(found.frame),
  };
}

function read() {
  const entry = parts().find((part) => part.startsWith(`${ENTRY}=`));
  if (!entry) return { ...EMPTY };
  try {
    return checked(JSON.parse(decodeURIComponent(entry.slice(ENTRY.length + 1))));
  } catch {
    return { ...EMPTY };
  }
}

function hash(state) {
  const chosen = Object.entries(state).filter(([, value]) => value !== null);
  const text = encodeURIComponent(JSON.stringify(Object.fromEntries(chosen)));
  const [tab, ...others] = parts();
  const rest = others.filter((part) => !part.startsWith(`${ENTRY}=`));
  return { tab, rest: [...rest, `${ENTRY}=${text}`] };
}

export class State {
  constructor() {
    this.now = read();
    this.listeners = [];
  }

  /** Call back with (state, set of the names that changed). */
  listen(listener) {
    this.listeners.push(listener);
  }

  /** Change some entries; whoever listens hears of those that are different now. */
  set(entries, { quiet = false } = {}) {
    const before = this.now;
    const changed = new Set(
      Object.keys(entries).filter(
        (name) => JSON.stringify(before[name]) !== JSON.stringify(entries[name]),
      ),
    );
    if (!changed.size) return;
    this.now = { ...before, ...entries };
    if (!quiet) this.write();
    for (const listener of this.listeners) listener(this.now, changed);
  }

  write() {
    const { tab, rest } = hash(this.now);
    const text = `#${[tab.includes("=") ? TAB : tab, ...rest].join("&")}`;
    const frame = outer();
    try {
      frame.history.replaceState(frame.history.state, "", text);
    } catch {
      try {
        window.location.replace(text);
      } catch {
        // A link that cannot be kept is no reason to stop.
      }
    }
  }

  /** Follow an address that the reader pastes or goes back to while the page is open. */
  follow() {
    const frame = outer();
    const look = () => {
      const found = read();
      if (parts().some((part) => part.startsWith(`${ENTRY}=`))) this.set(found, { quiet: true });
    };
    frame.addEventListener("hashchange", look);
    window.addEventListener("pagehide", () => frame.removeEventListener("hashchange", look));
  }

  /** The whole address of what is shown. */
  link() {
    const { rest } = hash(this.now);
    const tab = outer() === window ? "" : TAB;
    return `${outer().location.href.split("#")[0]}#${[tab, ...rest].join("&")}`;
  }
}
