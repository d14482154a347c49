// Building the page. Names are data: they only ever become text nodes or attribute values.

/**
 * Make an element. `attributes` may hold `text`, `on` ({event: listener}), and plain attributes;
 * true is an empty attribute, and null or false is none.
 */
export function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") made.textContent = value;
    else if (name === "on") {
      for (const [event, listener] of Object.entries(value)) made.addEventListener(event, listener);
    } else if (value === true) made.setAttribute(name, "");
    else if (value !== null && value !== false && value !== undefined) {
      made.setAttribute(name, String(value));
    }
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Cut a name to a length, with an ellipsis; never through a surrogate pair. */
export function short(name, length = 60) {
  const text = String(name).replace(/[\u0000-\u001f\u007f\u2028\u2029\u202a-\u202e\u2066-\u2069]/g, " ");
  if (text.length <= length) return text;
  return Array.from(text.slice(0, length + 1)).slice(0, -1).join("").slice(0, length - 1) + "…";
}

/** Cut a name in its middle: what tells layers apart is often at the end. */
export function middle(name, length) {
  const text = short(name, 20_000);
  if (text.length <= length) return text;
  const letters = Array.from(text);
  const head = Math.ceil((length - 1) * 0.4);
  return `${letters.slice(0, head).join("")}…${letters.slice(1 + head - length).join("")}`;
}

/** An element that shows a name, cut, and has all of it as its title. */
export function named(tag, name, length = 60, attributes = {}) {
  return make(tag, { title: String(name), ...attributes, text: short(name, length) });
}

let counted = 0;

/** An id that is not yet on the page. */
export function fresh(prefix) {
  counted += 1;
  return `${prefix}-${counted}`;
}

/** Wait until calls stop for some milliseconds, then make the last one. */
export function settled(call, milliseconds) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}
