// Shares of a whole, such as a histogram.

import { lineLook, PAINT } from "../colours.js";
import { short } from "../dom.js";
import { figure } from "../times.js";
import { base, tip } from "./base.js";

export const bars = {
  height: () => 250,

  option(panel, context) {
    const paint = PAINT[context.theme];
    return {
      ...base(context),
      grid: { left: 64, right: 20, top: 20, bottom: 48, outerBoundsMode: "none" },
      tooltip: {
        trigger: "axis",
        renderMode: "html",
        confine: true,
        transitionDuration: 0,
        backgroundColor: paint.tip,
        borderColor: paint.rule,
        textStyle: { color: paint.text },
        axisPointer: { type: "shadow" },
        formatter: ([part]) =>
          tip(short(panel.categories[part.dataIndex], 120), [
            `${short(panel.y, 60)}: ${figure(panel.values[part.dataIndex])}`,
          ]),
      },
      xAxis: {
        type: "category",
        data: panel.categories.map((_, index) => String(index)),
        name: short(panel.x, 40),
        nameLocation: "middle",
        nameGap: 28,
        nameTextStyle: { color: paint.quiet },
        axisLine: { lineStyle: { color: paint.quiet } },
        axisTick: { show: false },
        axisLabel: {
          color: paint.quiet,
          hideOverlap: true,
          formatter: (index) => short(panel.categories[Number(index)] ?? "", 14),
        },
      },
      yAxis: {
        type: "value",
        name: short(panel.y, 40),
        nameLocation: "middle",
        nameGap: 46,
        nameTextStyle: { color: paint.quiet },
        axisLabel: { color: paint.quiet },
        splitLine: { lineStyle: { color: paint.rule } },
      },
      series: [
        {
          type: "bar",
          data: panel.values.map((value) => value ?? "-"),
          itemStyle: { color: lineLook(0, "solid", context.theme).colour },
          barMaxWidth: 60,
        },
      ],
    };
  },

  range(panel) {
    const read = panel.values.filter((value) => value !== null);
    return read.length ? [Math.min(...read), Math.max(...read)] : null;
  },

  summary: (panel) =>
    panel.categories
      .slice(0, 40)
      .map((category, index) => `${short(category)}: ${figure(panel.values[index])}.`),

  table: (panel) => [
    [panel.x, panel.y],
    ...panel.categories.map((category, index) => [category, panel.values[index]]),
  ],
};
