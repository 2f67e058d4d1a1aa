// The concept browser: everything is built with textContent, so that a token that contains markup is read as a token.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const byId = new Map(page.concepts.map((concept) => [concept.id, concept]));
const list = document.getElementById("list"), main = document.getElementById("main");
const search = document.getElementById("search"), order = document.getElementById("order");

const within = (space) => (tag, attributes, ...children) => {
  const node = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children) node.append(typeof child === "object" ? child : document.createTextNode(String(child)));
  return node;
};
const make = within("http://www.w3.org/1999/xhtml"), draw = within("http://www.w3.org/2000/svg");

const short = (value) => value === null || value === undefined ? "–" : typeof value !== "number" ? String(value)
  : Number.isInteger(value) ? String(value) : value !== 0 && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
const visible = (token) => token.replaceAll("\n", "↵").replaceAll("\t", "⇥");
const title = (concept) => concept.label ? `${concept.id} · ${concept.label}` : concept.id;
const address = (id) => `#${encodeURIComponent(id)}`;
function shown() {  // the concept of the address; none of one that is not ours
  try { return byId.get(decodeURIComponent(location.hash.slice(1))); } catch { return undefined; }
}

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
    make("a", {href: address(concept.id)}, title(concept)),
    make("span", {class: "soft"}, concept.hint))));
  document.getElementById("count").textContent =
    `${hits.length} of ${page.concepts.length}` + (hits.length > most ? `, the first ${most} shown` : "");
  mark();
}

function mark() {
  const now = shown() && address(shown().id);
  for (const a of list.querySelectorAll("a")) a.toggleAttribute("aria-current", a.getAttribute("href") === now);
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

function pictureExample(example, most, grid) {
  const [height, width] = grid, box = make("div", {class: "picture"});
  box.append(make("img", {src: page.pictures[example.picture], alt: page.prompts[example.picture], title: page.prompts[example.picture]}));
  const heat = draw("svg", {viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none"});
  example.activations.forEach((value, i) => {
    if (value <= 0) return;
    const cell = draw("rect", {x: i % width, y: Math.floor(i / width), width: 1, height: 1,
      "fill-opacity": (0.75 * Math.min(1, value / most)).toFixed(2)});
    cell.append(draw("title", {}, short(value)));
    heat.append(cell);
  });
  box.append(heat);
  return box;
}

function histogram(concept) {
  const top = Math.max(...concept.histogram, 1), n = concept.histogram.length;
  const drawn = draw("svg", {viewBox: `0 0 ${n * 10} 60`, class: "histogram", role: "img"});
  concept.histogram.forEach((count, i) => {
    const height = 58 * count / top;
    const bar = draw("rect", {x: i * 10 + 1, y: 60 - height, width: 8, height});
    bar.append(draw("title", {}, `from ${short(page.bins[i])}: ${count} rows`));
    drawn.append(bar);
  });
  return make("figure", {}, drawn, make("figcaption", {},
    `How strongly it is on, where it is on: ${short(page.bins[0])} to ${short(page.bins[n - 1])} and above, by factors of √2`));
}

function tokens(words, by) {
  return make("p", {}, ...words.flatMap((word, i) =>
    [make("span", {class: "token", title: `${short(by[i])} nats`}, visible(word)), " "]));
}

// -- the concept graph -----------------------------------------------------------------------------------------

const graph = page.graph, weight = graph && Object.keys(graph.edgeMeaning)[0];
const BOX = {width: 190, height: 22, pitch: 29, between: 150, head: 30}, MOST_EDGES = 500, MOST_ROWS = 1000;
const bySize = (edges) => edges.slice().sort((a, b) => Math.abs(b[weight]) - Math.abs(a[weight]));
const nodeTitle = (node) => node.label ? `${node.latent} · ${node.label}` : String(node.latent);
const weightsOf = (edge) => Object.entries(graph.edgeMeaning).map(([key, name]) => `${name} ${short(edge[key])}`).join(", ");

// Nodes of neighbouring columns that share edges come to stand at about the same height: the mean place of a node's
// neighbours, weighted by the edges, decides its own, column by column, there and back (Sugiyama's barycentres).
function ordered(columns, edges) {
  const place = new Map();
  const settle = (column) => column.forEach((node, i) => place.set(node, (i + 0.5) / column.length));
  columns.forEach(settle);
  for (let sweep = 0; sweep < 12; sweep++) {
    for (const column of sweep % 2 ? columns.slice().reverse() : columns) {
      const wanted = new Map(column.map((node) => {
        let sum = 0, total = 0;
        for (const edge of edges) {
          const other = edge.parent === node ? edge.child : edge.child === node ? edge.parent : null;
          if (other === null || !place.has(other)) continue;
          sum += Math.abs(edge[weight]) * place.get(other);
          total += Math.abs(edge[weight]);
        }
        return [node, total > 0 ? sum / total : place.get(node)];
      }));
      column.sort((a, b) => wanted.get(a) - wanted.get(b));
      settle(column);
    }
  }
  return columns;
}

// Columns of nodes from left to right, and the edges between them; a click on a node leads to its concept.
function picture(columns, heads, edges, here) {
  const most = Math.max(...edges.map((edge) => Math.abs(edge[weight])), 1e-9);
  const tallest = Math.max(...columns.map((column) => column.length));
  const width = columns.length * BOX.width + (columns.length - 1) * BOX.between + 2, height = BOX.head + tallest * BOX.pitch;
  const at = new Map();
  columns.forEach((column, c) => column.forEach((node, i) => at.set(node, [
    1 + c * (BOX.width + BOX.between), BOX.head + (i + (tallest - column.length) / 2) * BOX.pitch])));
  const drawn = draw("svg", {class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "group"});
  const text = (x, y, words, kind) => draw("svg", {x: x + 6, y, width: BOX.width - 12, height: BOX.height},
    draw("text", {y: 15.5, class: kind}, words));  // an inner svg cuts off what does not fit
  heads.forEach((head, c) => drawn.append(text(1 + c * (BOX.width + BOX.between) - 6, 0, head, "head")));
  for (const edge of bySize(edges).reverse()) {
    const [[x1, y1], [x2, y2]] = [at.get(edge.parent), at.get(edge.child)].map(([x, y]) => [x, y + BOX.height / 2]);
    const from = x1 + BOX.width, middle = (from + x2) / 2, d = `M ${from} ${y1} C ${middle} ${y1} ${middle} ${y2} ${x2} ${y2}`;
    const names = [edge.parent, edge.child].map((node) => graph.nodes[node].name).join(" → ");
    drawn.append(draw("g", {class: edge[weight] < 0 ? "edge lowers" : "edge", "data-ends": ` ${edge.parent} ${edge.child} `},
      draw("path", {class: "line", d, "stroke-width": (1 + 5 * Math.abs(edge[weight]) / most).toFixed(2)}),
      draw("path", {class: "grip", d}), draw("title", {}, `${names}\n${weightsOf(edge)}`)));
  }
  for (const [node, [x, y]] of at) {
    const one = graph.nodes[node], level = graph.levels[one.level];
    const box = draw(one.concept === null || node === here ? "g" : "a", {class: node === here ? "node here" : "node", "data-node": node},
      draw("rect", {x, y, width: BOX.width, height: BOX.height, rx: 4}), text(x, y, nodeTitle(one)),
      draw("title", {}, `${one.name}${one.label ? `: ${one.label}` : ""}\n${level.place}, on at ${short(one.numbers.frequency)} of places`));
    if (box.tagName === "a") box.setAttribute("href", address(one.concept));
    drawn.append(box);
  }
  const follow = (event) => {  // under the pointer, a node's own edges stand out
    const node = event.type === "mouseout" ? null : event.target.closest("[data-node]");
    for (const edge of drawn.querySelectorAll(".edge"))
      edge.classList.toggle("faint", node !== null && !edge.dataset.ends.includes(` ${node.dataset.node} `));
  };
  drawn.addEventListener("mouseover", follow);
  drawn.addEventListener("mouseout", follow);
  return make("figure", {class: "wide"}, drawn, make("figcaption", {},
    `Wider: a larger measured effect, up to ${short(most)} of the child's typical code. Blue: the parent raises the child; orange, dashed: it lowers it.`));
}

function edgeTable(name, ends, edges) {
  if (edges.length === 0) return make("p", {class: "soft"}, `no ${name}`);
  const link = (node) => {
    const one = graph.nodes[node], words = one.label ? `${one.name} · ${one.label}` : one.name;
    return one.concept === null ? words : make("a", {href: address(one.concept)}, words);
  };
  return make("table", {class: name},
    make("thead", {}, make("tr", {}, ...ends.map((end) => make("th", {}, ends.length === 1 ? name : end)),
      ...Object.values(graph.edgeMeaning).map((column) => make("th", {class: "number"}, column)))),
    make("tbody", {}, ...bySize(edges).slice(0, MOST_ROWS).map((edge) => make("tr", {}, ...ends.map((end) => make("td", {}, link(edge[end]))),
      ...Object.keys(graph.edgeMeaning).map((key) => make("td", {class: "number"}, short(edge[key])))))));
}

function wholeGraph() {
  const kept = bySize(graph.edges).slice(0, MOST_EDGES), joined = new Set(kept.flatMap((edge) => [edge.parent, edge.child]));
  const numbers = graph.nodes.map((_, i) => i).filter((i) => joined.has(i));
  const columns = graph.levels.map((_, level) => numbers.filter((i) => graph.nodes[i].level === level));
  const left = graph.nodes.length - numbers.length, n = graph.edges.length;
  const note = [n > MOST_EDGES ? `The ${MOST_EDGES} strongest of ${n} edges are drawn.` : "",
    left ? `${left} of ${graph.nodes.length} concepts have no such edge and are left out.` : ""].filter(Boolean).join(" ");
  return make("section", {id: "graph"}, make("h2", {}, `Concept graph: ${n} edge${n === 1 ? "" : "s"}`),
    ...(kept.length ? [picture(ordered(columns, kept), graph.levels.map((level) => level.name), kept)] : []),
    ...(note ? [make("p", {class: "soft"}, note)] : []),
    ...(n ? [make("details", {}, make("summary", {}, n > MOST_ROWS ? `The ${MOST_ROWS} strongest edges in a table` : "All edges in a table"), edgeTable("edges", ["parent", "child"], graph.edges))] : []));
}

function neighbourhood(number) {
  const node = graph.nodes[number], level = graph.levels[node.level];
  const parents = graph.edges.filter((edge) => edge.child === number), children = graph.edges.filter((edge) => edge.parent === number);
  const facts = Object.entries(graph.nodeMeaning).filter(([key]) => node.numbers[key] !== null)
    .map(([key, name]) => `${name} ${short(node.numbers[key])}`).join(" · ");
  const sides = [bySize(parents).map((edge) => edge.parent), [number], bySize(children).map((edge) => edge.child)];
  return make("section", {class: "neighbours"}, make("h2", {}, `In the concept graph: ${node.name}`),
    make("p", {class: "soft"}, `${level.place}. ${facts}`),
    ...(parents.length + children.length ? [picture(sides, [parents.length ? "parents" : "", "", children.length ? "children" : ""], [...parents, ...children], number)] : []),
    edgeTable("parents", ["parent"], parents), edgeTable("children", ["child"], children));
}

// -- pages -----------------------------------------------------------------------------------------------------

function showConcept(concept) {
  const most = concept.numbers.strongest;
  const section = (name, ...content) => make("section", {}, make("h2", {}, name), ...content);
  const name = concept.level ? `${concept.level}, latent ${concept.latent}` : `Latent ${concept.latent}`;
  const parts = [make("h1", {}, concept.label ? `${name}: ${concept.label}` : name)];
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
  if (graph) graph.nodes.forEach((node, i) => { if (node.concept === concept.id) parts.push(neighbourhood(i)); });
  const groups = new Map();
  for (const example of concept.examples) {
    const kind = example.name.startsWith("strongest") ? "Strongest" : `Stronger than in ${example.name} of the rows where it is on`;
    groups.set(kind, [...(groups.get(kind) || []), example]);
  }
  for (const [name, examples] of groups) parts.push(section(name,
    concept.grid ? make("div", {class: "pictures"}, ...examples.map((one) => make("figure", {}, pictureExample(one, most, concept.grid),
      make("figcaption", {}, `step ${one.step}, ${short(one.value)}`))))
      : make("div", {}, ...examples.map((one) => textExample(one, most)))));
  main.replaceChildren(...parts);
}

function showStart() {
  main.replaceChildren(make("h1", {}, page.title), ...page.about.map((paragraph) => make("p", {}, paragraph)),
    ...(graph ? [wholeGraph()] : []), make("pre", {}, page.summary));
}

function route() {
  const concept = shown();
  if (concept) showConcept(concept); else showStart();
  main.scrollTop = 0;
  mark();
}

for (const concept of page.concepts) concept.text = [concept.id, concept.label, concept.candidate, concept.hint,
  ...(concept.promoted || []), ...concept.examples.map((one) => (one.tokens || [page.prompts[one.picture]]).join(""))]
  .join(" ").toLowerCase();
order.append(make("option", {value: "id"}, "number"), ...page.orders.map((name) => make("option", {value: name}, page.meaning[name] || name)));
search.addEventListener("input", showList);
order.addEventListener("change", showList);
window.addEventListener("hashchange", route);
showList();
route();
document.body.dataset.ready = "yes";
