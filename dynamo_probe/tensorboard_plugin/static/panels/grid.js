// A picture of layers and heads at one time.

import { PAINT } from "../colours.js";
import { middle, short } from "../dom.js";
import { figure } from "../times.js";
import { base, tip } from "./base.js";
import { rowAxis, scaleBar } from "./map.js";

const FEW_CELLS = 80;

/** Which frame is shown: the newest that is not after an update; null is the newest of all. */
export function frameOf(panel, update) {
  const { updates } = panel.axis;
  if (update === null) return updates.length - 1;
  let found = 0;
  updates.forEach((one, index) => {
    if (one <= update) found = index;
  });
  return found;
}

function cells(panel, context) {
  const frame = panel.frames[frameOf(panel, context.frame)] ?? [];
  const found = [];
  frame.forEach((row, r) =>
    row.forEach((value, c) => {
      if (value !== null) found.push([c, r, value]);
    }),
  );
  return found;
}

export const grid = {
  height: (panel) => Math.max(180, Math.min(panel.rows.length * 26, 420) + 80),

  option(panel, context) {
    const paint = PAINT[context.theme];
    const half = (panel.range[0] + panel.range[1]) / 2;
    const data = cells(panel, context).map((cell) => ({
      value: cell,
      label: { color: cell[2] > half ? "#000000" : "#ffffff" },
    }));
    const columns = panel.columns.length;
    return {
      ...base(context),
      grid: { left: 138, right: 20, top: 8, bottom: 56, outerBoundsMode: "none" },
      xAxis: {
        type: "category",
        data: panel.columns.map((_, index) => String(index)),
        axisLine: { show: false },
        axisTick: { show: false },
        splitArea: { show: false },
        axisLabel: {
          color: paint.text,
          hideOverlap: true,
          formatter: (index) => short(panel.columns[Number(index)] ?? "", columns > 6 ? 9 : 14),
        },
      },
      yAxis: {
        ...rowAxis(
          panel.rows.length,
          "",
          (row) => middle(panel.rows[row] ?? "", 16),
          grid.height(panel) - 64,
          context,
        ),
      },
      visualMap: { ...scaleBar(panel.range, panel.z, context), seriesIndex: 0 },
      series: [
        {
          type: "heatmap",
          name: "heads",
          data,
          label: {
            show: panel.rows.length * columns <= FEW_CELLS,
            formatter: (cell) => cell.value[2].toFixed(2),
          },
          itemStyle: { borderColor: paint.background, borderWidth: 1 },
          emphasis: { disabled: true },
          progressive: 0,
          animation: false,
        },
      ],
    };
  },

  hover(panel, context, [column, row]) {
    if (!panel.rows[row] || panel.columns[column] === undefined) return null;
    const index = frameOf(panel, context.frame);
    return tip(`${short(panel.rows[row], 100)}, ${short(panel.columns[column], 60)}`, [
      `update ${figure(panel.axis.updates[index])}`,
      `${short(panel.z, 60)}: ${figure(panel.frames[index]?.[row]?.[column])}`,
    ]);
  },

  rows: (panel) => panel.rows.length,
  places: (panel) => panel.columns.map((_, index) => index),
  range: (panel) => panel.range,

  summary(panel, context) {
    const found = cells(panel, context).sort((a, b) => b[2] - a[2]);
    const index = frameOf(panel, context.frame);
    const strongest = found
      .slice(0, 5)
      .map(([c, r, value]) => `${short(panel.rows[r])}, ${short(panel.columns[c])}: ${figure(value)}`);
    return [`At update ${figure(panel.axis.updates[index])}, strongest: ${strongest.join("; ")}.`];
  },

  table(panel, context) {
    const index = frameOf(panel, context.frame);
    const rows = [["update", "layer", "head", panel.z]];
    (panel.frames[index] ?? []).forEach((row, r) =>
      row.forEach((value, c) =>
        rows.push([panel.axis.updates[index], panel.rows[r], panel.columns[c], value]),
      ),
    );
    return rows;
  },
};
