// The tables, and the tokens as buttons.

/** Fill a table anew. Cells are texts or nodes; `numbers` are the columns that align right. */
function fillTable(table, heads, rows, { numbers = [], chosen = -1, foot = [] } = {}) {
  const kind = (i) => (numbers.includes(i) ? { class: "number" } : {});
  const line = (row, number) => html("tr", number === chosen ? { class: "chosen" } : {},
    ...row.map((cell, i) => html(i ? "td" : "th", { scope: i ? null : "row", ...kind(i) }, cell)));
  const head = html("tr", {},
    ...heads.map((text, i) => html("th", { scope: "col", ...kind(i) }, text)));
  table.replaceChildren(html("thead", {}, head), html("tbody", {}, ...rows.map(line)));
  if (foot.length) table.append(html("tfoot", {}, ...foot.map((row) => line(row, -2))));
}

const bar = (part) =>
  html("span", { class: "bar", "aria-hidden": "true" },
    html("i", { style: `width:${100 * part}%` }));

function buildTokens(group) {
  group.dir = facts.rightToLeft ? "rtl" : "ltr";
  const buttons = facts.tokens.map((id, i) =>
    html("button", { title: `token ${i}, id ${id}` }, token(id)));
  radios(group, "position", buttons, facts.rightToLeft ? -1 : 1);
}

function buildHeads(group) {
  const buttons = facts.slopes.map((slope, i) =>
    html("button", { title: `head ${i}, slope ${slope.toPrecision(3)}` },
      html("canvas", { width: T, height: T }), String(i)));
  radios(group, "head", buttons);
}

/** Each head's attention in small, a pixel for each pair of tokens. */
function drawHeads(group, pattern) {
  const [red, green, blue] = getComputedStyle(group).color.match(/[0-9.]+/g).map(Number);
  [...group.children].forEach((button, head) => {
    const pixels = new ImageData(T, T);
    for (let query = 0; query < T; query++) {
      for (let key = 0; key <= query; key++) {
        const alpha = 255 * opacity(share(pattern, head, query, key));
        pixels.data.set([red, green, blue, alpha], 4 * (query * T + key));
      }
    }
    button.firstChild.getContext("2d").putImageData(pixels, 0, 0);
  });
}

/** Of several radio buttons only the checked one is reached with Tab. */
function check(group, number) {
  [...group.children].forEach((button, i) => {
    button.setAttribute("aria-checked", String(i === number));
    button.tabIndex = i === number ? 0 : -1;
  });
  const chosen = group.children[number];
  const room = group.clientHeight - chosen.offsetHeight;
  group.scrollTop = chosen.offsetTop - group.offsetTop - room / 2;
}

/** Radio buttons that set `state[name]`: arrow keys, Home and End move through them. */
function radios(group, name, buttons, forward = 1) {
  const last = buttons.length - 1;
  buttons.forEach((button, i) => {
    button.setAttribute("role", "radio");
    button.type = "button";
    button.onclick = () => choose({ [name]: i });
  });
  group.append(...buttons);
  const moves = {
    ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -last, End: last,
  };
  group.addEventListener("keydown", (event) => {
    const move = moves[event.key];
    if (move === undefined) return;
    event.preventDefault();
    choose({ [name]: Math.min(last, Math.max(0, state[name] + move)) });
    buttons[state[name]].focus();
  });
}

function fillNext(table, title, state) {
  const { "next-ids": ids, "next-log-p": logs } = state.arrays;
  const actual = facts.tokens[state.position + 1];
  title.replaceChildren(`After token ${state.position}, `, token(facts.tokens[state.position]));
  const ranks = [...Array(ids.shape[1]).keys()];
  const rows = ranks.map((rank) => {
    const id = at(ids, state.position, rank);
    const log = at(logs, state.position, rank);
    const p = Math.exp(log);
    const note = id === actual ? html("span", { class: "soft" }, "  ← the text") : null;
    const name = html("span", {}, token(id), note);
    return [String(rank + 1), name, bar(p), percent(p), fixed(4)(log), String(id)];
  });
  fillTable(table, ["", "next token", "", "probability", "ln p", "id"], rows, {
    numbers: [3, 4, 5], chosen: ranks.findIndex((rank) => at(ids, state.position, rank) === actual),
  });
}

function fillStages(table, state, norms) {
  const size = (shape) => shape.split(" ").map((letter) => facts.sizes[letter]).join(" × ");
  const rows = facts.stages.map((stage, i) => [
    stage.name,
    html("span", { title: size(stage.shape) }, stage.shape),
    fixed(4)(at(norms, state.block, i, state.position)),
    html("span", {}, stage.meaning, html("span", { class: "formula" }, stage.formula)),
  ]);
  fillTable(table, ["stage", "shape", "norm", "what it is"], rows, { numbers: [2] });
}

function fillRow(table, title, state, pattern) {
  const { position, head } = state;
  const query = token(facts.tokens[position]);
  title.replaceChildren(`What token ${position}, `, query, `, takes with head ${head}`);
  const rows = [];
  for (let key = position; key >= 0; key--) {
    const taken = share(pattern, head, position, key);
    const bias = -facts.slopes[head] * (position - key);
    rows.push([token(facts.tokens[key]), String(key), fixed(4)(bias), fixed(4)(taken), bar(taken)]);
  }
  fillTable(table, ["key", "position", "ALiBi bias", "share", ""], rows, { numbers: [1, 2, 3] });
}

const LENS_CELLS = 4000; // more would make the page slow; then some positions around the chosen one
let lensWindow = null;

function fillLens(table, state) {
  const most = Math.max(8, Math.floor(LENS_CELLS / (L + 1)));
  const first = Math.max(0, Math.min(T - most, state.position - Math.floor(most / 2)));
  if (lensWindow === null || (most < T && lensWindow !== first)) {
    lensWindow = first;
    const positions = [...Array(Math.min(T, most)).keys()].map((i) => first + i);
    const heads = positions.map((i) =>
      html("th", { scope: "col", title: `token ${i}` }, token(facts.tokens[i])));
    const lines = [...Array(L + 1).keys()].map((layer) => html("tr", {},
      html("th", { scope: "row" }, String(layer)),
      ...positions.map((position) => lensCell(state, layer, position))));
    const head = html("tr", {}, html("th", { scope: "col" }, "layer"), ...heads);
    table.replaceChildren(html("thead", {}, head), html("tbody", {}, ...lines));
  }
  for (const cell of table.querySelectorAll("td.chosen")) {
    cell.classList.remove("chosen");
    cell.tabIndex = -1;
    cell.removeAttribute("aria-selected");
  }
  const chosen = table.tBodies[0].rows[state.layer].cells[1 + state.position - lensWindow];
  chosen.classList.add("chosen");
  chosen.tabIndex = 0;
  chosen.setAttribute("aria-selected", "true");
  const frame = table.parentElement;
  frame.scrollLeft = chosen.offsetLeft - (frame.clientWidth - chosen.offsetWidth) / 2;
  return chosen;
}

function lensCell(state, layer, position) {
  const p = Math.exp(at(state.arrays["lens-log-p"], layer, position, 0));
  const entropy = at(state.arrays["lens-entropy"], layer, position);
  const shade = (55 * p).toFixed(1); // of full strength it would drown the text
  const cell = html("td", {
    tabindex: -1,
    style: `background: color-mix(in srgb, var(--accent) ${shade}%, var(--paper))`,
  });
  const numbers = html("small", {}, `${percent(p)} · ${fixed(2)(entropy)}`);
  cell.append(token(at(state.arrays["lens-ids"], layer, position, 0)), numbers);
  cell.onclick = () => choose({ layer, position });
  return cell;
}

function moveInLens(table, event) {
  const move = {
    ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0],
    Home: [0, -T], End: [0, T],
  }[event.key];
  if (!move) return;
  event.preventDefault();
  const within = (x, most) => Math.min(most, Math.max(0, x));
  choose({
    layer: within(state.layer + move[0], L),
    position: within(state.position + move[1], T - 1),
  });
  fillLens(table, state).focus();
}

function describeLens(element, state) {
  const { layer, position } = state;
  const { "lens-ids": ids, "lens-log-p": logs, "lens-entropy": entropies } = state.arrays;
  const parts = [`Layer ${layer}, after token ${position}: `];
  for (let rank = 0; rank < ids.shape[2]; rank++) {
    const p = Math.exp(at(logs, layer, position, rank));
    parts.push(token(at(ids, layer, position, rank)), ` ${percent(p)} · `);
  }
  element.replaceChildren(...parts, `entropy ${fixed(4)(at(entropies, layer, position))} nats.`);
}

function fillParts(table, lead, position, parts) {
  const n = fixed(4);
  lead.replaceChildren(
    `After token ${position}, `, token(facts.tokens[position]), ", the likeliest next one is ",
    token(parts.token), `. Its logit ${n(parts.logit)} is a sum: what each part adds to the ` +
    "residual stream, seen along this token's row of the head, the last layer norm's scale taken " +
    "as it was. Blue speaks for the token, orange against it. All parts together: " +
    `${n(parts.sum)}.`);
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const rows = [["embedding", "", "", "", n(parts.embedding)]];
  parts.heads.forEach((heads, i) => {
    const [h, b, m] = [sum(heads), parts.biases[i], parts.mlps[i]];
    rows.push([`block ${i}`, n(h), n(b), n(m), n(h + b + m)]);
  });
  rows.push(["ln_f's bias", "", "", "", n(parts.finalBias)]);
  fillTable(table, ["part", "heads", "biases", "MLP", "together"], rows, {
    numbers: [1, 2, 3, 4],
    foot: [["sum", "", "", "", n(parts.sum)], ["logit", "", "", "", n(parts.logit)]],
  });
}

function fillBill(table, chosen) {
  const cells = ({ name, flops, weight_bytes: bytes, seconds }) => [
    name,
    html("span", { title: whole(flops) }, short(flops)),
    html("span", { title: whole(bytes) }, `${short(bytes)}B`),
    seconds === null ? "–" : fixed(4)(seconds),
  ];
  const sum = (key) => facts.bill.reduce((total, row) => total + (row[key] ?? 0), 0);
  const all = {
    name: "all",
    flops: sum("flops"),
    weight_bytes: sum("weight_bytes"),
    seconds: sum("seconds"),
  };
  fillTable(table, ["part", "FLOPs", "weights", "seconds"], facts.bill.map(cells), {
    numbers: [1, 2, 3], chosen, foot: [cells(all)],
  });
}
