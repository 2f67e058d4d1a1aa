// The concept browser: everything is built with textContent, so that a token that contains markup is read as a token.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(page.concepts.map((concept) => [concept.id, concept]));
const list = document.getElementById("list"), main = document.getElementById("main");
const search = document.getElementById("search"), order = document.getElementById("order");

function make(tag, attributes, ...children) {
  const node = document.createElementNS(
    ["svg", "rect", "line", "text", "g"].includes(tag) ? "http://www.w3.org/2000/svg" : "http://www.w3.org/1999/xhtml", tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children) node.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  return node;
}

const short = (value) => value === null || value === undefined ? "–" : typeof value !== "number" ? String(value)
  : Number.isInteger(value) ? String(value) : value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥");
const title = (concept) => concept.label ? `${concept.id} · ${concept.label}` : `${concept.id}`;
const link = (id) => make("a", {href: `#${id}`}, byId.has(id) ? title(byId.get(id)) : String(id));

function found() {
  const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const hits = page.concepts.filter((concept) => words.every((word) => concept.text.includes(word)));
  const key = order.value;
  if (key !== "id") hits.sort((a, b) => (b.numbers[key] ?? -Infinity) - (a.numbers[key] ?? -Infinity));
  return hits;
}

function showList() {
  const hits = found(), most = 400;
  list.replaceChildren(...hits.slice(0, most).map((concept) => make("li", {},
    make("a", {href: `#${concept.id}`}, title(concept)),
    make("span", {class: "soft"}, concept.hint))));
  document.getElementById("count").textContent =
    `${hits.length} of ${page.concepts.length}` + (hits.length > most ? `, the first ${most} shown` : "");
  mark();
}

function mark() {
  const now = location.hash.slice(1);
  for (const a of list.querySelectorAll("a")) a.toggleAttribute("aria-current", a.getAttribute("href") === `#${now}`);
}

function textExample(example, most) {
  return make("p", {class: "text"}, ...example.tokens.map((token, i) => {
    const strength = most > 0 ? Math.min(1, example.activations[i] / most) : 0;
    const span = make("span", {title: `${JSON.stringify(token)}: ${short(example.activations[i])}`}, visible(token));
    if (strength > 0) span.style.backgroundColor = `rgba(213, 94, 0, ${(0.15 + 0.65 * strength).toFixed(2)})`;
    if (i === example.at) span.className = "at";
    return span;
  }));
}

function pictureExample(example, most) {
  const [height, width] = page.grid, box = make("div", {class: "picture"});
  box.append(make("img", {src: page.pictures[example.picture], alt: page.prompts[example.picture], title: page.prompts[example.picture]}));
  const heat = make("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none"});
  example.activations.forEach((value, i) => {
    if (value <= 0) return;
    const cell = make("rect", {x: i % width, y: Math.floor(i / width), width: 1, height: 1,
      "fill-opacity": (0.75 * Math.min(1, value / most)).toFixed(2)});
    cell.append(make("title", {}, short(value)));
    heat.append(cell);
  });
  box.append(heat);
  return box;
}

function histogram(concept) {
  const top = Math.max(...concept.histogram, 1), n = concept.histogram.length;
  const drawn = make("svg", {viewBox: `0 0 ${n * 10} 60`, class: "histogram", role: "img"});
  concept.histogram.forEach((count, i) => {
    const height = 58 * count / top;
    const bar = make("rect", {x: i * 10 + 1, y: 60 - height, width: 8, height});
    bar.append(make("title", {}, `from ${short(page.bins[i])}: ${count} rows`));
    drawn.append(bar);
  });
  return make("figure", {}, drawn, make("figcaption", {},
    `How strongly it is on, where it is on: ${short(page.bins[0])} to ${short(page.bins[n - 1])} and above, by factors of √2`));
}

function tokens(words, by) {
  return make("p", {}, ...words.flatMap((word, i) =>
    [make("span", {class: "token", title: `${short(by[i])} nats`}, visible(word)), " "]));
}

function neighbours(concept) {
  const parents = page.edges.filter((edge) => edge.child === concept.id);
  const children = page.edges.filter((edge) => edge.parent === concept.id);
  const row = (edge, other) => make("tr", {}, make("td", {}, link(other)),
    ...page.edgeColumns.map((name) => make("td", {class: "number"}, short(edge[name]))));
  const table = (name, edges, end) => edges.length === 0 ? make("p", {class: "soft"}, `no ${name}`) : make("table", {class: name},
    make("thead", {}, make("tr", {}, make("th", {}, name), ...page.edgeColumns.map((column) => make("th", {}, column)))),
    make("tbody", {}, ...edges.slice().sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight)).map((edge) => row(edge, edge[end]))));
  return [table("parents", parents, "parent"), table("children", children, "child")];
}

function showConcept(concept) {
  const most = concept.numbers.strongest;
  const section = (name, ...content) => make("section", {}, make("h2", {}, name), ...content);
  const parts = [make("h1", {}, concept.label ? `Latent ${concept.id}: ${concept.label}` : `Latent ${concept.id}`)];
  parts.push(make("table", {class: "facts"}, make("tbody", {}, ...Object.entries(concept.numbers).filter(([, value]) => value !== null).map(([name, value]) =>
    make("tr", {}, make("th", {}, page.meaning[name] || name), make("td", {class: "number"}, short(value)))))));
  parts.push(histogram(concept));
  if (concept.candidate && !concept.label) parts.push(make("p", {class: "soft"},
    `The best label of the vocabulary, “${concept.candidate}”, is no better than with labels of other inputs.`));
  if (concept.promoted) parts.push(section("What adding it does to the next token",
    make("p", {class: "soft"}, "makes more likely"), tokens(concept.promoted, concept.promotedBy),
    make("p", {class: "soft"}, "makes less likely"), tokens(concept.suppressed, concept.suppressedBy)));
  if (concept.samples) parts.push(section("Steered", make("div", {class: "pictures"}, ...concept.samples.map((image, i) =>
    make("figure", {}, make("img", {src: image, alt: ""}), make("figcaption", {}, short(page.doses[i])))))));
  if (page.edges.length) parts.push(section("In the concept graph", ...neighbours(concept)));
  const groups = new Map();
  for (const example of concept.examples) {
    const kind = example.name.startsWith("strongest") ? "Strongest" : `Stronger than in ${example.name} of the rows where it is on`;
    groups.set(kind, [...(groups.get(kind) || []), example]);
  }
  for (const [name, examples] of groups) parts.push(section(name,
    page.grid ? make("div", {class: "pictures"}, ...examples.map((one) => make("figure", {}, pictureExample(one, most),
      make("figcaption", {}, `step ${one.step}, ${short(one.value)}`))))
      : make("div", {}, ...examples.map((one) => textExample(one, most)))));
  main.replaceChildren(...parts);
}

function showStart() {
  const parts = [make("h1", {}, page.title), ...page.about.map((paragraph) => make("p", {}, paragraph)),
    make("pre", {}, page.summary)];
  if (page.edges.length) {
    parts.push(make("h2", {}, `Concept graph: ${page.edges.length} edge${page.edges.length === 1 ? "" : "s"}`), make("table", {id: "edges"},
      make("thead", {}, make("tr", {}, make("th", {}, "parent"), make("th", {}, "child"),
        ...page.edgeColumns.map((column) => make("th", {}, column)))),
      make("tbody", {}, ...page.edges.slice(0, 1000).map((edge) => make("tr", {}, make("td", {}, link(edge.parent)), make("td", {}, link(edge.child)),
        ...page.edgeColumns.map((name) => make("td", {class: "number"}, short(edge[name]))))))));
  }
  main.replaceChildren(...parts);
}

function route() {
  const id = Number(location.hash.slice(1));
  if (location.hash.length > 1 && byId.has(id)) showConcept(byId.get(id)); else showStart();
  main.scrollTop = 0;
  mark();
}

for (const concept of page.concepts) concept.text = [concept.id, concept.label, concept.candidate, concept.hint,
  ...(concept.promoted || []), ...concept.examples.map((one) => (one.tokens || [page.prompts && page.prompts[one.picture]]).join(""))]
  .join(" ").toLowerCase();
order.append(make("option", {value: "id"}, "number"), ...page.orders.map((name) => make("option", {value: name}, page.meaning[name] || name)));
search.addEventListener("input", showList);
order.addEventListener("change", showList);
window.addEventListener("hashchange", route);
showList();
route();
document.body.dataset.ready = "yes";
