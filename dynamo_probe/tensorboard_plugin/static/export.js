// Files of what is shown: pictures and tables.

import { offPage } from "./chart.js";
import { PAINT } from "./colours.js";
import { short } from "./dom.js";

const WIDTH = 960;
const TITLE = 54;

/** A name that any file system takes: letters, digits, dashes, dots. */
export function fileName(parts, ending) {
  const safe = parts
    .map((part) => String(part).normalize("NFKC").replace(/[^\p{L}\p{N}._-]+/gu, "_"))
    .map((part) => part.replace(/^[._]+|[._]+$/g, "").slice(0, 48))
    .filter(Boolean)
    .join("-");
  return `${safe || "dynamo"}.${ending}`;
}

/** A cell of CSV. Text that a spreadsheet would take for a formula is marked as text. */
function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") return String(value);
  const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

/** Rows as CSV (RFC 4180). */
export function csv(rows) {
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

function save(blob, name) {
  const link = document.createElement("a");
  const url = URL.createObjectURL(blob);
  link.href = url;
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}

/** Draw a panel with its title, apart from the page. */
function drawn(kind, panel, run, context, renderer) {
  const paint = PAINT[context.theme];
  const alone = { ...context, exporting: true, compact: false };
  const option = kind.option(panel, alone);
  option.title = {
    text: short(panel.title, 90),
    subtext: short(run, 110),
    left: 12,
    top: 6,
    itemGap: 9,
    textStyle: { color: paint.text, fontSize: 15, fontWeight: 500 },
    subtextStyle: { color: paint.quiet, fontSize: 12 },
  };
  option.grid = { ...option.grid, top: option.grid.top + TITLE };
  const height = kind.height(panel, alone) + TITLE;
  return offPage(option, { renderer, width: WIDTH, height, background: paint.background });
}

/** Save a panel as `png`, `svg` or `csv`. */
export async function exportPanel(format, kind, panel, run, view, context) {
  const name = fileName([run, view, panel.key], format);
  if (format === "csv") {
    save(new Blob([csv(kind.table(panel, context))], { type: "text/csv;charset=utf-8" }), name);
  } else if (format === "svg") {
    const text = drawn(kind, panel, run, context, "svg");
    save(new Blob([text], { type: "image/svg+xml;charset=utf-8" }), name);
  } else {
    const canvas = drawn(kind, panel, run, context, "canvas");
    const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
    if (blob) save(blob, name);
  }
}
