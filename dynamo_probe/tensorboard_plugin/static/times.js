// The axes of time, and figures as text.

/** Seconds since a run's first reading, made from wall time: runs of other days compare by it. */
export const ELAPSED = "elapsed";

const TITLES = { updates: "updates", wall: "wall time", [ELAPSED]: "time since the start" };

/** What an axis is called. */
export function axisTitle(name) {
  return TITLES[name] ?? name;
}

/** Where points lie on an axis; null where the data do not say. Milliseconds on `wall`. */
export function along(axis, name, start) {
  if (name === "wall") return axis.wall.map((at) => (at === null ? null : at * 1000));
  if (name === ELAPSED) return axis.wall.map((at) => (at === null ? null : at - start));
  const found = axis[name];
  return found ?? axis.updates.map(() => null);
}

/** Where a mark lies on an axis, or null. */
export function markAt(at, name, start) {
  if (name === "wall") return Number.isFinite(at.wall) ? at.wall * 1000 : null;
  if (name === ELAPSED) return Number.isFinite(at.wall) ? at.wall - start : null;
  return Number.isFinite(at[name]) ? at[name] : null;
}

/** All time axes in a panel. */
export function axesOf(panel) {
  if (panel.kind === "lines") return panel.lines.map((line) => line.axis);
  return panel.axis ? [panel.axis] : [];
}

/** The names of the axes that panels have, the usual ones first. */
export function axisNames(panels) {
  const names = new Set(["updates", "wall", ELAPSED]);
  for (const panel of panels) {
    for (const axis of axesOf(panel)) Object.keys(axis).forEach((name) => names.add(name));
  }
  return [...names];
}

/** The first and the last point of panels on an axis, or null where there is none. */
export function extent(panels, name, start) {
  let low = Infinity;
  let high = -Infinity;
  for (const panel of panels) {
    for (const axis of axesOf(panel)) {
      for (const at of along(axis, name, start)) {
        if (at === null) continue;
        if (at < low) low = at;
        if (at > high) high = at;
      }
    }
  }
  return low <= high ? [low, high] : null;
}

/** The earliest wall time in panels. */
export function startOf(panels) {
  return extent(panels, "wall", 0)?.[0] / 1000 || 0;
}

function span(seconds) {
  const sign = seconds < 0 ? "-" : "";
  const all = Math.abs(seconds);
  if (all < 120) return `${sign}${Number(all.toPrecision(3))} s`;
  if (all < 7200) return `${sign}${Number((all / 60).toPrecision(3))} min`;
  if (all < 172800) return `${sign}${Number((all / 3600).toPrecision(3))} h`;
  return `${sign}${Number((all / 86400).toPrecision(3))} d`;
}

/** A point in time as text. */
export function timeText(name, at) {
  if (at === null || !Number.isFinite(at)) return "unknown";
  if (name === "wall") return new Date(at).toLocaleString("sv-SE");
  if (name === ELAPSED) return span(at);
  return at.toLocaleString("en", { maximumFractionDigits: 2 });
}

/** A figure as text: four digits, and never 0 for what is not. */
export function figure(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "not read";
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}
