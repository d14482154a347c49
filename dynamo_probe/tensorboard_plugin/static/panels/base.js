// What charts over time have in common.

import { PAINT } from "../colours.js";
import { make, short } from "../dom.js";
import { along, axisTitle, ELAPSED, markAt, timeText } from "../times.js";

const MOST_LABELS = 12;

/** The option that all charts start from. */
export function base(context) {
  const paint = PAINT[context.theme];
  return {
    animation: false,
    aria: { enabled: false },
    textStyle: { fontFamily: "Roboto, system-ui, sans-serif", color: paint.text },
    title: [],
    tooltip: { show: false },
  };
}

/** The shared axis of time: the same range in all panels, so that they compare at a glance. */
export function timeAxis(context, extra = {}) {
  const paint = PAINT[context.theme];
  const [low, high] = context.range ?? [0, 1];
  const name = context.axis;
  const ticks = name === ELAPSED ? { customValues: roundTicks(context, low, high) } : {};
  const spread = high > low ? 0 : 1;
  return {
    type: name === "wall" ? "time" : "value",
    min: low - spread,
    max: high + spread,
    name: context.compact ? "" : axisTitle(name),
    nameLocation: "middle",
    nameGap: 26,
    nameTextStyle: { color: paint.quiet },
    axisLine: { lineStyle: { color: paint.quiet }, onZero: false },
    axisTick: { lineStyle: { color: paint.quiet }, ...ticks },
    splitLine: { show: false },
    splitNumber: context.compact ? 2 : 5,
    axisLabel: {
      color: paint.quiet,
      hideOverlap: true,
      ...ticks,
      ...(name === "wall" ? {} : { formatter: (at) => tick(name, at, low, high) }),
    },
    ...extra,
  };
}

const SECONDS = [
  0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600,
  43_200, 86_400, 172_800, 604_800, 1_209_600, 2_592_000, 7_776_000, 31_536_000,
];

/** Ticks at whole minutes, hours or days, where the seconds of the shown time are. */
function roundTicks(context, low, high) {
  const from = low + ((high - low) * context.zoom.start) / 100;
  const to = low + ((high - low) * context.zoom.end) / 100;
  const most = context.compact ? 3 : 6;
  const step = SECONDS.find((one) => (to - from) / one <= most) ?? (to - from) / most;
  const first = Math.ceil(from / step);
  const count = Math.max(Math.floor(to / step) - first + 1, 0);
  return Array.from({ length: count }, (_, index) => (first + index) * step);
}

/** What all charts leave free at their sides, so that their times are below one another. */
export function sides(context, rows = 0) {
  const right = context.compact ? 12 : context.left > 100 || rows ? 30 : 20;
  return { left: context.compact ? 46 : context.left, right, outerBoundsMode: "none" };
}

function tick(name, at, low, high) {
  // The ends of the range are rarely round: they are said in the title, and shown only if they are.
  const step = (high - low) / 5;
  const round = Math.abs(at / step - Math.round(at / step)) < 1e-9;
  const inside = at > low && at < high;
  if (name === ELAPSED) return inside || round ? timeText(name, at) : "";
  if (!inside && String(Number(at.toPrecision(3))) !== String(Number(at.toPrecision(12)))) return "";
  return at.toLocaleString("en", { notation: "compact", maximumSignificantDigits: 4 });
}

/**
 * A series of what happened: vertical lines with labels.
 *
 * `onPicture` is for charts whose rows run downwards and are painted; `range` holds values that the
 * vertical axis has to cover, so that panels of several runs compare.
 */
export function marks(panel, context, { onPicture = false, range = null, height = 200 } = {}) {
  const paint = PAINT[context.theme];
  const placed = (panel.marks ?? [])
    .map((mark) => ({ at: markAt(mark.at, context.axis, context.start), label: mark.label }))
    .filter((mark) => mark.at !== null);
  const labelled = placed.length <= MOST_LABELS;
  const colour = onPicture ? paint.markOnPicture : paint.mark;
  const most = Math.max(6, Math.min(28, Math.floor(height / 7)));
  const [left, right] = context.range ?? [0, 1];
  // Labels stand beside their lines, and those near an end of the axis on the inner side.
  const side = (at) => {
    if (onPicture) return at > left + 0.8 * (right - left) ? "insideStartBottom" : "insideStartTop";
    return at < left + 0.2 * (right - left) ? "insideEndBottom" : "insideEndTop";
  };
  return {
    type: "line",
    name: "marks",
    data: range ? range.map((value) => [left, value]) : [],
    showSymbol: false,
    lineStyle: { opacity: 0 },
    silent: true,
    tooltip: { show: false },
    markLine: {
      silent: true,
      symbol: ["none", "none"],
      lineStyle: { color: colour, type: "dotted", width: 1.5, opacity: labelled ? 1 : 0.5 },
      label: {
        show: labelled && !context.compact,
        color: onPicture ? "#ffffff" : colour,
        textBorderColor: onPicture ? "#000000" : paint.background,
        textBorderWidth: 3,
        fontSize: 11,
      },
      data: placed.map((mark) => ({
        xAxis: mark.at,
        label: { formatter: () => short(mark.label, most), position: side(mark.at) },
      })),
    },
  };
}

/** Marks near a point in time, for the hover. */
export function marksNear(panel, context, at) {
  const [low, high] = context.range ?? [0, 1];
  const near = ((high - low) * (context.zoom.end - context.zoom.start)) / 10_000;
  return (panel.marks ?? [])
    .filter((mark) => {
      const place = markAt(mark.at, context.axis, context.start);
      return place !== null && Math.abs(place - at) <= near;
    })
    .slice(0, 5)
    .map((mark) => short(mark.label, 120));
}

/** Zooming in time, together in all panels; `rows` adds a slider over the rows of a map. */
export function zooms(context, rows = 0) {
  const zoom = [
    {
      id: "time",
      type: "inside",
      xAxisIndex: 0,
      filterMode: "none",
      zoomOnMouseWheel: "ctrl",
      moveOnMouseWheel: false,
      moveOnMouseMove: "shift",
      start: context.zoom.start,
      end: context.zoom.end,
    },
  ];
  if (rows > 48 && !context.exporting) {
    const paint = PAINT[context.theme];
    zoom.push({
      id: "rows",
      type: "slider",
      start: context.rows?.start ?? 0,
      end: context.rows?.end ?? 100,
      yAxisIndex: 0,
      filterMode: "none",
      width: 12,
      right: 4,
      top: 8,
      bottom: 48,
      showDetail: false,
      showDataShadow: false,
      brushSelect: false,
      borderColor: paint.rule,
      handleSize: "120%",
    });
  }
  return zoom;
}

/** The text of a hover, as elements. */
export function tip(head, lines) {
  return make(
    "div",
    { class: "tip" },
    make("strong", { text: head }),
    ...lines.map((line) => make("div", { text: line })),
  );
}

/** Rows of a table that give the times of points: a header and a cell for each axis. */
export function timeColumns(axis) {
  const names = Object.keys(axis);
  return {
    head: names.map((name) => (name === "wall" ? "wall (s since 1970)" : name)),
    at: (index) => names.map((name) => axis[name][index]),
  };
}

/** Whether a panel says where it is on the chosen axis. */
export function hasAxis(axes, context) {
  return axes.some((axis) => along(axis, context.axis, context.start).some((at) => at !== null));
}
