// A heatmap: rows over time.

import { PAINT, pixels, scale } from "../colours.js";
import { middle, short } from "../dom.js";
import { along, figure, timeText } from "../times.js";
import { base, marks, marksNear, sides, timeAxis, timeColumns, tip, zooms } from "./base.js";
import { nearestColumn, picture } from "./picture.js";

const LINE = 15; // pixels between two labels

/** The axis of rows, named and from top to bottom. */
export function rowAxis(rows, title, label, height, context) {
  const paint = PAINT[context.theme];
  const part = context.exporting || !context.rows ? 100 : context.rows.end - context.rows.start;
  const each = Math.max(1, Math.ceil((((rows * part) / 100) * LINE) / height));
  return {
    type: "category",
    inverse: true,
    data: Array.from({ length: rows }, (_, index) => String(index)),
    name: title,
    nameLocation: "middle",
    nameGap: 118,
    nameTextStyle: { color: paint.quiet },
    axisLine: { show: false },
    axisTick: { show: false },
    splitLine: { show: false },
    axisLabel: {
      color: paint.text,
      interval: each - 1,
      formatter: (index) => label(Number(index)),
    },
  };
}

/** The bar that says which colour is which value. */
export function scaleBar(range, title, context) {
  const paint = PAINT[context.theme];
  return {
    type: "continuous",
    min: range[0],
    max: range[1] > range[0] ? range[1] : range[0] + 1,
    inRange: { color: scale(range) },
    orient: "horizontal",
    left: "center",
    bottom: 0,
    itemWidth: 12,
    itemHeight: 150,
    calculable: false,
    hoverLink: false,
    text: [`${figure(range[1])}  ${short(title, 40)}`, figure(range[0])],
    textStyle: { color: paint.text },
    seriesIndex: [],
  };
}

export const map = {
  height: (panel) => Math.max(190, Math.min(panel.rows.length * 22, 440) + 96),

  option(panel, context) {
    const table = pixels(panel.range);
    const [low, high] = panel.range;
    const slope = 255 / (high > low ? high - low : 1);
    const places = along(panel.axis, context.axis, context.start);
    const rows = panel.rows.length;
    return {
      ...base(context),
      grid: { ...sides(context, rows), top: 8, bottom: 70 },
      xAxis: timeAxis(context),
      yAxis: rowAxis(
        rows,
        short(panel.row, 30),
        (row) => middle(panel.rows[row] ?? "", 16),
        map.height(panel) - 78,
        context,
      ),
      visualMap: scaleBar(panel.range, panel.z, context),
      dataZoom: zooms(context, rows),
      series: [
        picture({
          places,
          rows,
          fine: context.exporting,
          paint(row, column) {
            const value = panel.values[row][column];
            if (value === null || value === undefined) return 0;
            return table[Math.max(0, Math.min(255, Math.round((value - low) * slope)))];
          },
        }),
        marks(panel, context, { onPicture: true, height: map.height(panel) - 78 }),
      ],
    };
  },

  /** What is under a point of the chart: [time, row] -> text, or null. */
  hover(panel, context, [at, row]) {
    const places = along(panel.axis, context.axis, context.start);
    const column = nearestColumn(places, at);
    if (column < 0 || !panel.rows[row]) return null;
    const said = [
      `${timeText(context.axis, places[column])}`,
      `${short(panel.z, 60)}: ${figure(panel.values[row][column])}`,
      ...marksNear(panel, context, at),
    ];
    if (panel.opens) said.push("Click to see its units.");
    return tip(short(panel.rows[row], 160), said);
  },

  rows: (panel) => panel.rows.length,
  places: (panel, context) => along(panel.axis, context.axis, context.start),
  range: (panel) => panel.range,

  summary(panel) {
    return panel.rows.slice(0, 40).map((row, index) => {
      const read = panel.values[index].filter((value) => value !== null);
      if (!read.length) return `${short(row)}: no values.`;
      return `${short(row)}: ${figure(read[0])} at first, ${figure(read.at(-1))} at last.`;
    });
  },

  table(panel) {
    const times = timeColumns(panel.axis);
    const rows = [[...times.head, ...panel.rows]];
    for (let column = 0; column < panel.axis.updates.length; column += 1) {
      rows.push([...times.at(column), ...panel.values.map((row) => row[column])]);
    }
    return rows;
  },
};
