// Curves over time.

import { lineLook, PAINT } from "../colours.js";
import { short } from "../dom.js";
import { along, figure, timeText } from "../times.js";
import { base, marks, marksNear, sides, timeAxis, tip, zooms } from "./base.js";

const MOST_IN_TIP = 14;
const FEW_POINTS = 40;

function points(line, panel, context) {
  const places = along(line.axis, context.axis, context.start);
  const found = [];
  for (let index = 0; index < places.length; index += 1) {
    if (places[index] === null) continue;
    const value = line.values[index];
    found.push([places[index], value === null || (panel.logarithmic && value <= 0) ? "-" : value]);
  }
  return found;
}

function hover(panel, context, parts) {
  const at = parts[0]?.axisValue;
  const read = parts
    .filter((part) => part.seriesIndex < panel.lines.length && Number.isFinite(part.value?.[1]))
    .map((part) => `${short(panel.lines[part.seriesIndex].name, 60)}: ${figure(part.value[1])}`);
  const more = read.length > MOST_IN_TIP ? [`and ${read.length - MOST_IN_TIP} more`] : [];
  const said = [...read.slice(0, MOST_IN_TIP), ...more, ...marksNear(panel, context, at)];
  return tip(timeText(context.axis, at), said);
}

export const lines = {
  height: (panel, context) => (context.compact ? 120 : panel.lines.length > 1 ? 290 : 250),

  option(panel, context) {
    const paint = PAINT[context.theme];
    const legend = panel.lines.length > 1 || !context.compact;
    return {
      ...base(context),
      grid: {
        ...sides(context),
        top: context.compact ? 10 : 20,
        bottom: (context.compact ? 24 : 48) + (legend ? 22 : 0),
      },
      legend: {
        show: legend,
        type: "scroll",
        bottom: 0,
        left: "center",
        data: panel.lines.map((_, index) => String(index)),
        formatter: (index) => short(panel.lines[Number(index)]?.name ?? "", 40),
        textStyle: { color: paint.text },
        inactiveColor: paint.rule,
        pageTextStyle: { color: paint.text },
        pageIconColor: paint.text,
        pageIconInactiveColor: paint.rule,
        itemWidth: 34,
      },
      tooltip: {
        trigger: "axis",
        renderMode: "html",
        confine: true,
        enterable: false,
        transitionDuration: 0,
        backgroundColor: paint.tip,
        borderColor: paint.rule,
        textStyle: { color: paint.text },
        axisPointer: { lineStyle: { color: paint.quiet } },
        formatter: (parts) => hover(panel, context, parts),
      },
      xAxis: timeAxis(context),
      yAxis: {
        type: panel.logarithmic ? "log" : "value",
        scale: true,
        name: context.compact ? "" : short(panel.y, 40),
        nameLocation: "middle",
        nameGap: 46,
        nameTextStyle: { color: paint.quiet },
        splitNumber: context.compact ? 2 : 5,
        axisLabel: { color: paint.quiet, formatter: (value) => figure(value) },
        splitLine: { lineStyle: { color: paint.rule } },
      },
      dataZoom: context.compact ? [] : zooms(context),
      series: [
        ...panel.lines.map((line, index) => {
          const look = lineLook(index, line.style, context.theme);
          const data = points(line, panel, context);
          return {
            type: "line",
            name: String(index),
            data,
            symbol: look.symbol,
            symbolSize: 6,
            showSymbol: data.length <= FEW_POINTS,
            showAllSymbol: false,
            connectNulls: false,
            itemStyle: { color: look.colour },
            lineStyle: { color: look.colour, type: look.dash, width: 1.8 },
            emphasis: { disabled: true },
          };
        }),
        marks(panel, context, { range: context.compared?.get(panel.key) ?? null }),
      ],
    };
  },

  summary(panel, context) {
    return panel.lines.slice(0, 20).map((line) => {
      const read = line.values.filter((value) => value !== null);
      if (!read.length) return `${short(line.name)}: no values.`;
      const places = along(line.axis, context.axis, context.start);
      const last = timeText(context.axis, places.at(-1) ?? null);
      const low = figure(read.reduce((a, b) => Math.min(a, b)));
      const high = figure(read.reduce((a, b) => Math.max(a, b)));
      return (
        `${short(line.name)}: ${figure(read[0])} at first, ` +
        `${figure(read.at(-1))} at last (${last}), from ${low} to ${high}.`
      );
    });
  },

  range(panel) {
    const all = panel.lines.flatMap((line) => line.values.filter((value) => value !== null));
    if (!all.length) return null;
    return [all.reduce((a, b) => Math.min(a, b)), all.reduce((a, b) => Math.max(a, b))];
  },

  table(panel) {
    const names = [...new Set(panel.lines.flatMap((line) => Object.keys(line.axis)))];
    const rows = [["line", ...names.map((n) => (n === "wall" ? "wall (s since 1970)" : n)), panel.y]];
    for (const line of panel.lines) {
      line.values.forEach((value, index) => {
        rows.push([line.name, ...names.map((name) => line.axis[name]?.[index] ?? null), value]);
      });
    }
    return rows;
  },
};
