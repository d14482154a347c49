// A picture of rows over time, painted pixel by pixel: readings are not evenly apart in time, and
// thousands of rows are painted as fast as a few.

/** For each pixel from 0 to `width`, which column is nearest in time; -1 beyond the readings. */
export function columnsOf(places, low, high, width) {
  const known = [];
  places.forEach((at, index) => at !== null && known.push([at, index]));
  const found = new Int32Array(width).fill(-1);
  if (!known.length) return found;
  const edge = (k) => (known[k][0] + known[k + 1][0]) / 2;
  const first = known.length > 1 ? known[0][0] - (known[1][0] - known[0][0]) / 2 : -Infinity;
  const last = known.length > 1 ? 2 * known.at(-1)[0] - edge(known.length - 2) : Infinity;
  let k = 0;
  for (let x = 0; x < width; x += 1) {
    const at = low + ((x + 0.5) / width) * (high - low);
    if (at < first || at > last) continue;
    while (k < known.length - 1 && at > edge(k)) k += 1;
    found[x] = known[k][1];
  }
  return found;
}

/** The nearest column to a point in time, or -1. */
export function nearestColumn(places, at) {
  let best = -1;
  let least = Infinity;
  places.forEach((place, index) => {
    if (place !== null && Math.abs(place - at) < least) {
      least = Math.abs(place - at);
      best = index;
    }
  });
  return best;
}

/** Paint to a canvas; `paint(row, column)` is a pixel, 0 for nothing. */
function painted(width, height, columns, rowAt, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = height;
  const brush = canvas.getContext("2d");
  const image = brush.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  let before = -1;
  for (let y = 0; y < height; y += 1) {
    const row = rowAt(y);
    const line = y * width;
    if (row === before && y > 0) pixels.copyWithin(line, line - width, line);
    else if (row >= 0) {
      for (let x = 0; x < width; x += 1) {
        if (columns[x] >= 0) pixels[line + x] = paint(row, columns[x]);
      }
    }
    before = row;
  }
  brush.putImageData(image, 0, 0);
  return canvas;
}

/** A series that fills the chart with the picture of `rows` rows at `places`. */
export function picture({ places, rows, paint, fine = false }) {
  const known = places.filter((at) => at !== null);
  const last = { key: "", canvas: null };
  return {
    type: "custom",
    name: "picture",
    data: [[known[0] ?? 0, 0]],
    silent: true,
    clip: true,
    tooltip: { show: false },
    renderItem(params, api) {
      const area = params.coordSys;
      const density = fine ? 2 : Math.min(api.getDevicePixelRatio?.() ?? 1, 2);
      const [x0, y0] = api.coord([known[0] ?? 0, 0]);
      const reference = (known[0] ?? 0) + 1;
      const slope = api.coord([reference, 0])[0] - x0; // pixels for one unit of time
      const band = rows > 1 ? api.coord([known[0] ?? 0, 1])[1] - y0 : area.height;
      if (!(slope > 0) || !(band > 0) || area.width < 1 || area.height < 1) return null;
      const width = Math.round(area.width * density);
      const height = Math.round(area.height * density);
      const low = (known[0] ?? 0) + (area.x - x0) / slope;
      const key = [width, height, low, slope, band, y0].join();
      if (key !== last.key) {
        const columns = columnsOf(places, low, low + area.width / slope, width);
        const top = y0 - band / 2 - area.y;
        last.canvas = painted(width, height, columns, (y) => {
          const row = Math.floor(((y + 0.5) / density - top) / band);
          return row >= 0 && row < rows ? row : -1;
        }, paint);
        last.key = key;
      }
      return {
        type: "image",
        silent: true,
        style: { image: last.canvas, x: area.x, y: area.y, width: area.width, height: area.height },
      };
    },
  };
}
