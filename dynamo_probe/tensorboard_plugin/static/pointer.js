// Pointing at cells of maps, rasters and grids, by mouse or by arrow keys.

import { make } from "./dom.js";

let bubble = null;

function show(content, x, y) {
  bubble ??= document.body.appendChild(make("div", { class: "bubble", role: "presentation" }));
  bubble.replaceChildren(content);
  bubble.hidden = false;
  const { offsetWidth, offsetHeight } = bubble;
  const left = x + 14 + offsetWidth > window.innerWidth ? x - 14 - offsetWidth : x + 14;
  const top = y + 14 + offsetHeight > window.innerHeight ? y - 14 - offsetHeight : y + 14;
  bubble.style.left = `${Math.max(4, left)}px`;
  bubble.style.top = `${Math.max(4, top)}px`;
}

/** Take the hover away. */
export function hide() {
  if (bubble) bubble.hidden = true;
}

/** Where the mouse or the keys are in one panel. */
export class Pointer {
  /**
   * @param box the chart's element.
   * @param look returns {kind, panel, context} of what is drawn now.
   * @param said the element that says aloud what the arrow keys point at.
   * @param choose called with a row that was clicked, or chosen with Enter.
   */
  constructor(box, look, said, choose) {
    Object.assign(this, { box, look, said, choose, instance: null, row: 0, column: 0 });
    box.addEventListener("keydown", (event) => this.key(event));
    box.addEventListener("blur", hide);
    box.addEventListener("mouseleave", hide);
  }

  /** Follow the mouse on a new chart. */
  wire(instance) {
    this.instance = instance;
    const canvas = instance.getZr();
    canvas.on("mousemove", (event) => this.moved(event));
    canvas.on("click", (event) => {
      const at = this.cell(event);
      if (at) this.choose(at[1]);
    });
  }

  /** [place on the horizontal axis, row] under the mouse, or null. */
  cell(event) {
    const point = [event.offsetX, event.offsetY];
    if (!this.instance.containPixel("grid", point)) return null;
    const [x, y] = this.instance.convertFromPixel({ gridIndex: 0 }, point);
    return [x, Math.round(y)];
  }

  moved(event) {
    const { kind, panel, context } = this.look();
    const at = this.cell(event);
    const content = at && kind.hover(panel, context, at);
    if (!content) return hide();
    const area = this.box.getBoundingClientRect();
    show(content, area.left + event.offsetX, area.top + event.offsetY);
    return undefined;
  }

  key(event) {
    const { kind, panel, context } = this.look();
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    if (event.key === "Escape") return hide();
    if (event.key === "Enter") {
      event.preventDefault();
      return this.choose(this.row);
    }
    const move = moves[event.key];
    if (!move || !this.instance) return undefined;
    event.preventDefault();
    const places = kind.places(panel, context);
    const far = event.shiftKey ? 10 : 1;
    const within = (value, count) => Math.max(0, Math.min(count - 1, value));
    this.row = within(this.row + move[0] * far, kind.rows(panel));
    this.column = within(this.column + move[1] * far, places.length);
    const at = [places[this.column], this.row];
    const content = at[0] === null ? null : kind.hover(panel, context, at);
    if (!content) return hide();
    this.said.textContent = Array.from(content.children, (one) => one.textContent).join(", ");
    const [x, y] = this.instance.convertToPixel({ gridIndex: 0 }, at);
    const area = this.box.getBoundingClientRect();
    show(content, area.left + x, area.top + y);
    return undefined;
  }
}
