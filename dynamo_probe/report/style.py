"""How the page looks. Figures stay on white, light or dark."""

CSS = """
:root { --ink: #1c1f23; --paper: #ffffff; --soft: #5b636d;
  --line: #d5d9de; --tint: #f4f6f8; --link: #0b5cad; --warn: #b3420a; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #16191d; --soft: #a3abb5; --line: #3a4048; --tint: #20252b;
    --link: #7db8f0; --warn: #f0a06a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 58rem; color: var(--ink);
  background: var(--paper); font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif;
  overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; line-height: 1.25; }
h2 { font-size: 1.4rem; margin: 3rem 0 .5rem; padding-top: 1rem;
  border-top: 2px solid var(--line); }
h3 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
a { color: var(--link); }
a:focus-visible, summary:focus-visible, .wide:focus-visible { outline: 3px solid var(--link);
  outline-offset: 2px; }
.soft, footer { color: var(--soft); font-size: .9rem; }
nav { background: var(--tint); border-radius: 8px; padding: .75rem 1rem; margin: 1rem 0; }
nav h2 { font-size: 1rem; margin: 0; padding: 0; border: 0; }
nav ol { margin: .25rem 0; padding-left: 1.5rem; }
nav ul { display: inline; padding: 0; margin: 0; list-style: none; }
nav ul li { display: inline; margin-left: .6rem; font-size: .9rem; }
.warnings { border-left: 4px solid var(--warn); padding: .1rem 1rem; background: var(--tint); }
.empty { color: var(--soft); border-left: 4px solid var(--line); padding-left: 1rem; }
.panel { margin: 1.25rem 0 1.75rem; }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; max-width: 100%; height: auto; background: #ffffff; padding: 6px;
  border: 1px solid var(--line); border-radius: 8px; }
figcaption { color: var(--soft); font-size: .92rem; margin-top: .4rem; }
details { margin-top: .35rem; font-size: .9rem; }
summary { cursor: pointer; width: fit-content; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .25rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
tbody th { font-weight: 400; }
th, td.number { overflow-wrap: normal; }
td.number { text-align: right; white-space: nowrap; }
th.number { text-align: right; }
@media print { body { max-width: none; } h2 { break-before: page; } nav { display: none; } }
"""
