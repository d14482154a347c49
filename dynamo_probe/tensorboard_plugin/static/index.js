// The Dynamo tab. TensorBoard loads this module in an empty frame and calls render().

import { make } from "./dom.js";
import { Page } from "./page.js";

/** Build the page and keep it up to date. */
export async function render() {
  document.documentElement.lang = "en";
  document.title = "Dynamo";
  const style = make("link", {
    rel: "stylesheet",
    href: new URL("./style.css", import.meta.url).href,
  });
  const styled = new Promise((done) => {
    style.addEventListener("load", done);
    style.addEventListener("error", done);
  });
  document.head.append(style);
  await styled; // charts measure their boxes
  await new Page(document.body).start();
}
