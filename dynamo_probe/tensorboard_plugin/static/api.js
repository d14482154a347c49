// Fetching from the plugin's routes, which lie one folder above the static files.

const BASE = new URL("..", import.meta.url);
const MOST_KEPT = 96;
const LONG = 200;
const kept = new Map();

/** The address of a route of the plugin. */
export function address(route, query = {}) {
  const url = new URL(route, BASE);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined) url.searchParams.append(name, String(value));
  }
  return url;
}

/** Fetch JSON; what the plugin says of an error becomes the error's message. */
async function json(route, query) {
  let answer;
  try {
    answer = await fetch(address(route, query), { credentials: "same-origin" });
  } catch {
    throw new Error("TensorBoard does not answer. Is it still running?");
  }
  const text = await answer.text();
  let found = null;
  try {
    found = JSON.parse(text);
  } catch {
    found = null;
  }
  if (!answer.ok || found === null || found.error) {
    const said = found?.error ?? `TensorBoard answered with status ${answer.status}.`;
    const failure = new Error(String(said));
    failure.status = answer.status;
    throw failure;
  }
  return found;
}

/** The same fetch, kept for as long as the run (`version`) stays as it is. */
function keptJson(version, route, query) {
  const key = JSON.stringify([version, route, query]);
  if (!kept.has(key)) {
    const coming = json(route, query);
    kept.set(key, coming);
    coming.catch(() => kept.delete(key));
    if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value);
  }
  return kept.get(key);
}

/** All runs that have our data, and what could not be read. */
export function fetchRuns() {
  return json("runs", {});
}

/** A view of a run at a threshold (null for the run's own choice). */
export async function fetchView(run, version, name, tau) {
  if (name === "overview" && tau === null) {
    const found = await keptJson(version, "overview", { run });
    const view = found.views?.[run];
    const said = found.trouble?.find((one) => one.run === run)?.text ?? "";
    if (!view) throw new Error(said || "this run has no overview");
    return said ? { ...view, trouble: said } : view;
  }
  return keptJson(version, "view", { run, name, tau });
}

/** The single units of a layer over time; `row` is the layer's place in the map. */
export function fetchRaster(run, version, layer, row) {
  // A name of thousands of characters does not go into an address.
  const which = layer.length > LONG ? { row } : { layer };
  return keptJson(version, "raster", { run, ...which });
}
