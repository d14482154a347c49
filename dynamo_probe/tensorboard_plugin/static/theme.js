// Light or dark as TensorBoard is. The frame does not inherit it.

const DARK = "dark-mode";

function parentBody() {
  try {
    return window.parent === window ? null : window.parent.document.body;
  } catch {
    return null;
  }
}

/** Whether the page is to be dark now. */
export function isDark() {
  const body = parentBody();
  if (body) return body.classList.contains(DARK);
  return window.matchMedia("(prefers-color-scheme: dark)").matches;
}

/** Call back at each change of theme. */
export function onTheme(listener) {
  let last = isDark();
  const look = () => {
    const dark = isDark();
    if (dark === last) return;
    last = dark;
    listener(dark);
  };
  const body = parentBody();
  if (body) {
    new MutationObserver(look).observe(body, { attributes: true, attributeFilter: ["class"] });
  }
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", look);
}
