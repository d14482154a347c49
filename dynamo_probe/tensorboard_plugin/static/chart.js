// A chart on the page: drawn when it comes near the viewport, and reused for all that follows.

import * as echarts from "./vendor/echarts.esm.min.js";

const charts = new Map(); // box -> Chart

const near = new IntersectionObserver(
  (entries) => {
    for (const entry of entries) charts.get(entry.target)?.seen(entry.isIntersecting);
  },
  { root: document, rootMargin: "300px" },
);
const sized = new ResizeObserver((entries) => {
  for (const entry of entries) charts.get(entry.target)?.resized();
});

export class Chart {
  /** @param box the element to draw in; @param wire called once with the new ECharts instance. */
  constructor(box, wire) {
    this.box = box;
    this.wire = wire;
    this.instance = null;
    this.pending = null; // a function that makes the option
    this.visible = false;
    this.frame = 0;
    charts.set(box, this);
    near.observe(box);
    sized.observe(box);
  }

  /** Draw, now or when the box comes near; `option` is made only then. */
  draw(option) {
    this.pending = option;
    this.plan();
  }

  plan() {
    if (!this.visible || this.frame || !this.pending) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    // TensorBoard hides the frame of a tab that is not shown; there is nothing to measure then.
    if (!this.pending || !this.box.clientWidth || !this.box.clientHeight) return;
    const option = this.pending();
    this.pending = null;
    if (!this.instance) {
      this.instance = echarts.init(this.box, null, { renderer: "canvas" });
      this.wire?.(this.instance);
    }
    this.instance.setOption(option, { notMerge: true, lazyUpdate: false });
    this.box.dataset.drawn = String(Number(this.box.dataset.drawn ?? 0) + 1);
  }

  seen(visible) {
    this.visible = visible;
    this.plan();
  }

  resized() {
    if (this.instance && this.box.clientWidth && this.box.clientHeight) {
      if (
        this.instance.getWidth() !== this.box.clientWidth ||
        this.instance.getHeight() !== this.box.clientHeight
      ) {
        this.instance.resize();
      }
    }
    this.plan();
  }

  dispose() {
    near.unobserve(this.box);
    sized.unobserve(this.box);
    charts.delete(this.box);
    cancelAnimationFrame(this.frame);
    this.instance?.dispose();
    this.instance = null;
    this.pending = null;
  }
}

/** Draw an option off the page: a canvas, or the text of an SVG. */
export function offPage(option, { renderer, width, height, background }) {
  const shared = { ...option, animation: false, backgroundColor: background };
  if (renderer === "svg") {
    const chart = echarts.init(null, null, { renderer: "svg", ssr: true, width, height });
    chart.setOption(shared);
    const text = chart.renderToSVGString();
    chart.dispose();
    return text;
  }
  const box = document.createElement("div");
  const chart = echarts.init(box, null, { width, height, devicePixelRatio: 2 });
  chart.setOption(shared);
  const canvas = chart.renderToCanvas({ pixelRatio: 2, backgroundColor: background });
  chart.dispose();
  return canvas;
}
