// The kinds of panels. Each has: height, option, summary, range, table; and, where single cells can
// be pointed at, hover, rows and places.

import { bars } from "./bars.js";
import { grid } from "./grid.js";
import { lines } from "./lines.js";
import { map } from "./map.js";
import { raster } from "./raster.js";

const KINDS = new Map(Object.entries({ lines, map, raster, grid, bars }));

/** How a panel is drawn; undefined for a kind of a later version. */
export function kindOf(panel) {
  return KINDS.get(panel.kind);
}
