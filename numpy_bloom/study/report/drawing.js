// Making elements, and saving figures.

const SVG = document.createElement("template");
SVG.innerHTML = "<svg></svg>";
const NAMESPACE = SVG.content.firstChild.namespaceURI; // so that no address stands in the page

/** An HTML element with attributes and children; text is never read as markup. */
function html(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

/** The same for SVG. */
function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(NAMESPACE, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** A token in a text of any direction; marks such as ␣ are paler than letters. */
function token(tokenId) {
  const parts = labelOf(tokenId).split(/([␣↵␍⇥]|<0x[0-9A-F]{2}>|<U\+[0-9A-F]+>)/);
  const children = parts.map((part, i) => (i % 2 ? html("span", { class: "mark" }, part) : part));
  return html("bdi", {}, ...children);
}

/** A token in a drawing: cut if it is long, kept from turning its surroundings around. */
function shortLabel(tokenId, most = 10) {
  const characters = [...labelOf(tokenId)];
  const cut = characters.length > most ? [...characters.slice(0, most - 1), "…"] : characters;
  return `\u2068${cut.join("")}\u2069`;
}

const fontSize = () => 0.75 * parseFloat(getComputedStyle(document.documentElement).fontSize);

/** Text at a place; `anchor` is start, middle or end. */
function label(x, y, text, anchor = "start", attributes = {}) {
  return svg("text", { x, y, "text-anchor": anchor, "font-size": fontSize(), ...attributes }, text);
}

/** Put a drawing, its caption and the button that saves it into a figure. */
function show(figure, drawing, title, caption) {
  drawing.setAttribute("role", "img");
  drawing.setAttribute("aria-label", title);
  const old = figure.querySelector("svg");
  if (old) {
    old.replaceWith(drawing);
  } else {
    const button = html("button", { type: "button" }, "Save SVG");
    figure.append(drawing, html("figcaption", {}, html("span"), button));
  }
  figure.querySelector("figcaption span").textContent = caption;
  const button = figure.querySelector("button");
  button.setAttribute("aria-label", `Save as SVG: ${title}`);
  button.onclick = () => save(drawing, title);
}

/** The width that a figure has for its drawing. */
const widthOf = (figure) => Math.max(240, figure.clientWidth);

/** An empty drawing as wide as its figure, or `most`. */
function sheet(figure, height, most = Infinity) {
  const width = Math.floor(Math.min(widthOf(figure), most));
  const tall = typeof height === "function" ? height(width) : height;
  return svg("svg", { width, height: tall, viewBox: `0 0 ${width} ${tall}` });
}

const KEPT = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray",
  "stroke-linejoin", "font-family", "font-size", "font-weight", "shape-rendering"];

const MARGIN = 12;

/** A file of the drawing alone, with the colours that it has now. */
function standalone(drawing, title) {
  const copy = drawing.cloneNode(true);
  const originals = drawing.querySelectorAll("*");
  copy.querySelectorAll("*").forEach((element, i) => {
    const style = getComputedStyle(originals[i]);
    for (const name of KEPT) element.setAttribute(name, style.getPropertyValue(name));
    element.removeAttribute("class");
  });
  const paper = getComputedStyle(drawing.closest("section")).backgroundColor;
  const { width, height } = drawing.viewBox.baseVal;
  const size = { width: width + 2 * MARGIN, height: height + 2 * MARGIN };
  fill(copy, { ...size, viewBox: `${-MARGIN} ${-MARGIN} ${size.width} ${size.height}` }, []);
  const ground = svg("rect", { x: -MARGIN, y: -MARGIN, ...size, fill: paper });
  copy.prepend(svg("title", {}, title), ground);
  return new XMLSerializer().serializeToString(copy);
}

function save(drawing, title) {
  const file = new Blob([standalone(drawing, title)], { type: "image/svg+xml" });
  const url = URL.createObjectURL(file);
  const name = title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  html("a", { href: url, download: `${name}.svg` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
