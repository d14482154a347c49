// Colours that colour-blind readers can tell apart; brightness alone tells them apart as well.

/** Cividis (Nuñez, Anderton and Renslow 2018), ten of its colours: dark is low, light is high. */
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173",
  "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
];

/** For values around zero: blue below, orange above. */
const AROUND_ZERO = ["#08457e", "#0072b2", "#7fb8d8", "#f7f7f7", "#eeb080", "#d55e00", "#8a3c00"];

/** Okabe and Ito (2008), in an order that keeps neighbours apart; without what vanishes. */
const LINES = {
  light: ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b07800", "#56b4e9", "#000000"],
  dark: ["#56b4e9", "#e69f00", "#1fc598", "#cc79a7", "#f0e442", "#f07b32", "#ffffff"],
};
const SYMBOLS = ["circle", "rect", "triangle", "diamond", "pin", "arrow", "roundRect"];
const DASHES = ["solid", [10, 3], [3, 2], [10, 3, 2, 3], [1, 3]];

/** What charts are drawn with. */
export const PAINT = {
  light: {
    background: "#ffffff", text: "#212121", quiet: "#616161", rule: "#d5d5d5",
    mark: "#8a1c4a", markOnPicture: "#ff7eb6",
    dormant: "#140b34", live: "#a6cfe8", pruned: "#858585", recycled: "#c43c00",
    tip: "#ffffff",
  },
  dark: {
    background: "#303030", text: "#f5f5f5", quiet: "#c2c2c2", rule: "#565656",
    mark: "#ff9ec4", markOnPicture: "#ff7eb6",
    dormant: "#120a2c", live: "#a6cfe8", pruned: "#858585", recycled: "#c43c00",
    tip: "#424242",
  },
};

/** Colour, dash and symbol of a line, by its place and style: all three tell lines apart. */
export function lineLook(index, style, theme) {
  const colours = LINES[theme];
  const turn = Math.floor(index / colours.length);
  return {
    colour: colours[index % colours.length],
    dash: style === "dashed" ? [5, 4] : DASHES[turn % DASHES.length],
    symbol: SYMBOLS[index % SYMBOLS.length],
  };
}

/** The colours of a scale from its low end to its high end. */
export function scale([low, high]) {
  return low < 0 && high > 0 ? AROUND_ZERO : CIVIDIS;
}

function channels(colour) {
  const number = parseInt(colour.slice(1), 16);
  return [number >> 16, (number >> 8) & 255, number & 255];
}

/** A colour as one little-endian pixel. */
export function pixel(colour) {
  const [red, green, blue] = channels(colour);
  return ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
}

/** 256 pixels from the low end of a scale to its high end. */
export function pixels(range) {
  const stops = scale(range).map(channels);
  return Uint32Array.from({ length: 256 }, (_, index) => {
    const at = (index / 255) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    const mixed = stops[low].map((one, c) => Math.round(one + (at - low) * (stops[low + 1][c] - one)));
    return ((255 << 24) | (mixed[2] << 16) | (mixed[1] << 8) | mixed[0]) >>> 0;
  });
}
