// Single units over time: dormant, live, pruned, and when they were recycled.

import { PAINT, pixel } from "../colours.js";
import { along, figure, timeText } from "../times.js";
import { base, sides, timeAxis, timeColumns, tip, zooms } from "./base.js";
import { rowAxis } from "./map.js";
import { nearestColumn, picture } from "./picture.js";

const PRUNED = 254;
const UNREAD = 255;
const decoded = new WeakMap();

/** The codes of a raster, row by row. */
export function codesOf(panel) {
  if (!decoded.has(panel)) {
    const text = atob(panel.codes.base64);
    const codes = new Uint8Array(text.length);
    for (let index = 0; index < text.length; index += 1) codes[index] = text.charCodeAt(index);
    decoded.set(panel, codes);
  }
  return decoded.get(panel);
}

/** The state that a code means at the threshold `taus[level]`. */
export function stateOf(code, level) {
  if (code === PRUNED) return "pruned";
  if (code === UNREAD) return "not read";
  return code <= level ? "dormant" : "live";
}

/** Which of a raster's thresholds is meant: the nearest that it has. */
export function levelOf(panel, tau) {
  let best = 0;
  panel.taus.forEach((one, index) => {
    if (Math.abs(one - (tau ?? 0.1)) < Math.abs(panel.taus[best] - (tau ?? 0.1))) best = index;
  });
  return best;
}

/** Where an update lies on the chosen axis, between the readings around it; null if nowhere. */
function between(updates, places, update) {
  let after = updates.findIndex((one) => one >= update);
  if (after < 0) after = updates.length - 1;
  const before = Math.max(after - 1, 0);
  if (!updates.length || places[after] === null || places[before] === null) return null;
  const whole = updates[after] - updates[before];
  const share = whole ? Math.min((update - updates[before]) / whole, 1) : 1;
  return places[before] + share * (places[after] - places[before]);
}

function recyclings(panel, context, places) {
  const paint = PAINT[context.theme];
  const data = [];
  for (const [row, update] of panel.recycled) {
    const at =
      context.axis === "updates" ? update : between(panel.axis.updates, places, update);
    if (at !== null) data.push([at, row]);
  }
  return {
    type: "scatter",
    name: "recycled",
    data,
    silent: true,
    symbol: "diamond",
    symbolSize: data.length > 2000 ? 5 : 8,
    itemStyle: { color: "transparent", borderColor: paint.recycled, borderWidth: 1.6 },
    progressive: 4000,
    tooltip: { show: false },
  };
}

/** The legend: what each colour is. Drawn, so that exported pictures have it. */
function legend(panel, context) {
  const paint = PAINT[context.theme];
  const look = (name, colour, icon = "rect", style = {}) => ({
    name,
    icon,
    itemStyle: { color: colour, borderColor: paint.quiet, borderWidth: 1, opacity: 1, ...style },
  });
  const outlined = { color: "transparent", borderColor: paint.recycled, borderWidth: 1.6 };
  return {
    bottom: 0,
    left: "center",
    selectedMode: false,
    textStyle: { color: paint.text },
    data: [
      look("dormant", paint.dormant),
      look("live", paint.live),
      look("pruned", paint.pruned),
      look("recycled", "transparent", "diamond", outlined),
      ...(codesOf(panel).includes(UNREAD) ? [look("not read", paint.background)] : []),
    ],
    itemWidth: 18,
    itemGap: 12,
  };
}

/** Series without data, that a legend's entries can belong to. */
const named = (name) => ({ type: "scatter", name, data: [], silent: true });

export const raster = {
  height: (panel) => Math.max(220, Math.min(panel.units.length * 6, 460) + 84),

  option(panel, context) {
    const paint = PAINT[context.theme];
    const codes = codesOf(panel);
    const level = levelOf(panel, context.tau);
    const columns = panel.codes.columns;
    const rows = panel.units.length;
    const places = along(panel.axis, context.axis, context.start);
    const colours = {
      dormant: pixel(paint.dormant),
      live: pixel(paint.live),
      pruned: pixel(paint.pruned),
      "not read": 0,
    };
    const table = Uint32Array.from({ length: 256 }, (_, code) => colours[stateOf(code, level)]);
    return {
      ...base(context),
      grid: { ...sides(context, rows), top: 8, bottom: 70 },
      legend: legend(panel, context),
      xAxis: timeAxis(context),
      yAxis: rowAxis(
        rows,
        "unit",
        (row) => String(panel.units[row] ?? ""),
        raster.height(panel) - 78,
        context,
      ),
      dataZoom: zooms(context, rows),
      series: [
        picture({
          places,
          rows,
          fine: context.exporting,
          paint: (row, column) => table[codes[row * columns + column]],
        }),
        named("dormant"),
        named("live"),
        named("pruned"),
        named("not read"),
        recyclings(panel, context, places),
      ],
    };
  },

  hover(panel, context, [at, row]) {
    const places = along(panel.axis, context.axis, context.start);
    const column = nearestColumn(places, at);
    if (column < 0 || row < 0 || row >= panel.units.length) return null;
    const level = levelOf(panel, context.tau);
    const code = codesOf(panel)[row * panel.codes.columns + column];
    const said = [timeText(context.axis, places[column]), stateOf(code, level)];
    if (code < PRUNED) {
      const low = code > 0 ? `above ${panel.taus[code - 1]}` : "";
      const high = code < panel.taus.length ? `at most ${panel.taus[code]}` : "";
      said.push(`score ${[low, high].filter(Boolean).join(", ")}`);
    }
    const times = panel.recycled.filter(([one]) => one === row).map(([, update]) => update);
    if (times.length) {
      const some = times.slice(0, 6).map(figure).join("; ");
      said.push(`recycled at update ${some}${times.length > 6 ? "; …" : ""}`);
    }
    return tip(`unit ${panel.units[row]}`, said);
  },

  rows: (panel) => panel.units.length,
  places: (panel, context) => along(panel.axis, context.axis, context.start),
  range: () => null,

  summary(panel, context) {
    const codes = codesOf(panel);
    const level = levelOf(panel, context.tau);
    const { columns } = panel.codes;
    const counts = {};
    for (let row = 0; row < panel.units.length && columns; row += 1) {
      const state = stateOf(codes[(row + 1) * columns - 1], level);
      counts[state] = (counts[state] ?? 0) + 1;
    }
    const now = Object.entries(counts).map(([state, count]) => `${count} ${state}`);
    return [
      `At the last reading, tau ${panel.taus[level]}: ${now.join(", ")}.`,
      `${panel.recycled.length} recyclings. ${panel.units.length} of ${panel.of} units are shown.`,
    ];
  },

  table(panel, context) {
    const codes = codesOf(panel);
    const level = levelOf(panel, context.tau);
    const times = timeColumns(panel.axis);
    const { updates } = panel.axis;
    const again = new Set();
    for (const [row, update] of panel.recycled) {
      const column = updates.findIndex((one) => one >= update);
      if (column >= 0) again.add(`${row},${column}`);
    }
    const rows = [[...times.head, ...Array.from(panel.units, (unit) => `unit ${unit}`)]];
    for (let column = 0; column < panel.codes.columns; column += 1) {
      const cells = panel.units.map((_, row) => {
        const state = stateOf(codes[row * panel.codes.columns + column], level);
        return again.has(`${row},${column}`) ? `${state}; recycled since the last reading` : state;
      });
      rows.push([...times.at(column), ...cells]);
    }
    return rows;
  },
};
