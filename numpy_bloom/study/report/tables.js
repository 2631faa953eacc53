// The tables, and the tokens as buttons.

/** Fill a table anew. Cells are texts or nodes; `numbers` are the columns that align right. */
function fillTable(table, heads, rows, { numbers = [], chosen = -1, foot = [] } = {}) {
  const kind = (i) => (numbers.includes(i) ? { class: "number" } : {});
  const line = (row, number) => html("tr", number === chosen ? { class: "chosen" } : {},
    ...row.map((cell, i) => (i ? html("td", kind(i), cell) : html("th", { scope: "row", ...kind(0) }, cell))));
  const head = html("tr", {}, ...heads.map((text, i) => html("th", { scope: "col", ...kind(i) }, text)));
  table.replaceChildren(html("thead", {}, head), html("tbody", {}, ...rows.map(line)));
  if (foot.length) table.append(html("tfoot", {}, ...foot.map((row) => line(row, -2))));
}

const bar = (part) => html("span", { class: "bar", "aria-hidden": "true" }, html("i", { style: `width:${100 * part}%` }));

function buildTokens(element) {
  element.dir = facts.rightToLeft ? "rtl" : "ltr";
  facts.tokens.forEach((tokenId, i) => {
    const button = html("button", { type: "button", role: "radio", title: `token ${i}, id ${tokenId}` }, token(tokenId));
    button.onclick = () => choose({ position: i });
    element.append(button);
  });
  const forward = facts.rightToLeft ? -1 : 1;
  element.addEventListener("keydown", (event) => {
    const moved = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -T, End: T }[event.key];
    if (!moved) return;
    event.preventDefault();
    choose({ position: Math.min(T - 1, Math.max(0, state.position + moved)) });
    element.children[state.position].focus();
  });
}

function markToken(element, position) {
  [...element.children].forEach((button, i) => {
    button.setAttribute("aria-checked", String(i === position));
    button.tabIndex = i === position ? 0 : -1;
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
    const name = html("span", {}, token(id), id === actual ? html("span", { class: "soft" }, "  ← the text") : "");
    return [String(rank + 1), name, bar(Math.exp(log)), percent(Math.exp(log)), fixed(4)(log), String(id)];
  });
  fillTable(table, ["", "next token", "", "probability", "ln p", "id"], rows, {
    numbers: [3, 4, 5], chosen: ranks.findIndex((rank) => at(ids, state.position, rank) === actual),
  });
}

function fillStages(table, state, norms) {
  const rows = facts.stages.map((stage, i) => [
    stage.name,
    html("span", { title: stage.shape.split(" ").map((letter) => facts.sizes[letter]).join(" × ") }, stage.shape),
    fixed(4)(at(norms, state.block, i, state.position)),
    html("span", {}, stage.meaning, html("span", { class: "formula" }, stage.formula)),
  ]);
  fillTable(table, ["stage", "shape", "norm", "what it is"], rows, { numbers: [2] });
}

function fillRow(table, title, state, pattern) {
  const { position, head } = state;
  title.replaceChildren(`What token ${position}, `, token(facts.tokens[position]), `, takes with head ${head}`);
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
    const heads = positions.map((i) => html("th", { scope: "col", title: `token ${i}` }, token(facts.tokens[i])));
    const lines = [...Array(L + 1).keys()].map((layer) => html("tr", {},
      html("th", { scope: "row" }, String(layer)),
      ...positions.map((position) => lensCell(state, layer, position))));
    table.replaceChildren(html("thead", {}, html("tr", {}, html("th", { scope: "col" }, "layer"), ...heads)), html("tbody", {}, ...lines));
  }
  for (const cell of table.querySelectorAll("td.chosen")) {
    cell.classList.remove("chosen");
    cell.tabIndex = -1;
  }
  const chosen = table.tBodies[0].rows[state.layer].cells[1 + state.position - lensWindow];
  chosen.classList.add("chosen");
  chosen.tabIndex = 0;
  return chosen;
}

function lensCell(state, layer, position) {
  const p = Math.exp(at(state.arrays["lens-log-p"], layer, position, 0));
  const entropy = at(state.arrays["lens-entropy"], layer, position);
  const cell = html("td", {
    tabindex: -1, class: p > 0.55 ? "strong" : null,
    style: `background: color-mix(in srgb, var(--accent) ${(100 * p).toFixed(1)}%, var(--paper))`,
  }, token(at(state.arrays["lens-ids"], layer, position, 0)), html("small", {}, `${percent(p)} · ${fixed(2)(entropy)}`));
  cell.onclick = () => choose({ layer, position });
  return cell;
}

function moveInLens(table, event) {
  const move = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0], Home: [0, -T], End: [0, T] }[event.key];
  if (!move) return;
  event.preventDefault();
  const within = (x, most) => Math.min(most, Math.max(0, x));
  choose({ layer: within(state.layer + move[0], L), position: within(state.position + move[1], T - 1) });
  const cell = fillLens(table, state);
  cell.focus();
  cell.scrollIntoView({ block: "nearest", inline: "center" });
}

function describeLens(element, state) {
  const { layer, position } = state;
  const { "lens-ids": ids, "lens-log-p": logs, "lens-entropy": entropies } = state.arrays;
  const parts = [`Layer ${layer}, after token ${position}: `];
  for (let rank = 0; rank < ids.shape[2]; rank++) {
    parts.push(token(at(ids, layer, position, rank)), ` ${percent(Math.exp(at(logs, layer, position, rank)))}, `);
  }
  element.replaceChildren(...parts, `entropy ${fixed(4)(at(entropies, layer, position))} nats.`);
}

function fillParts(table, lead, parts) {
  const last = facts.tokens[T - 1];
  lead.replaceChildren("After the last token, ", token(last), ", the likeliest next one is ", token(parts.token),
    `. Its logit ${fixed(4)(parts.logit)} is a sum: what each part adds to the residual stream, seen along ` +
    "this token's row of the head, the last layer norm's scale taken as it was. Blue speaks for the token, orange " +
    `against it. All parts together: ${fixed(4)(parts.sum)}.`);
  const sum = (numbers) => numbers.reduce((a, b) => a + b, 0);
  const n = fixed(4);
  const rows = [["embedding", "", "", "", n(parts.embedding)]];
  parts.heads.forEach((heads, i) => {
    const [h, b, m] = [sum(heads), parts.biases[i], parts.mlps[i]];
    rows.push([`block ${i}`, n(h), n(b), n(m), n(h + b + m)]);
  });
  rows.push(["ln_f's bias", "", "", "", n(parts.final_bias)]);
  fillTable(table, ["part", "heads", "biases", "MLP", "together"], rows, {
    numbers: [1, 2, 3, 4], foot: [["sum", "", "", "", n(parts.sum)], ["logit", "", "", "", n(parts.logit)]],
  });
}

function fillBill(table, chosen) {
  const cells = ({ name, flops, weight_bytes: bytes, seconds }) => [
    name, html("span", { title: whole(flops) }, short(flops)), html("span", { title: whole(bytes) }, `${short(bytes)}B`),
    seconds === null ? "–" : fixed(4)(seconds),
  ];
  const sum = (key) => facts.bill.reduce((total, row) => total + (row[key] ?? 0), 0);
  const all = { name: "all", flops: sum("flops"), weight_bytes: sum("weight_bytes"), seconds: sum("seconds") };
  fillTable(table, ["part", "FLOPs", "weights", "seconds"], facts.bill.map(cells), {
    numbers: [1, 2, 3], chosen, foot: [cells(all)],
  });
}
