// The figures. Each function draws into its <figure> what the state says.

const BOLD = { "font-weight": 600 };

/** The architecture from the token to the next one, with the norms of the chosen block. */
function drawPath(figure, state, norms) {
  const f = fontSize();
  const step = 2.5 * f;
  const drawing = sheet(figure, 19.4 * step, 46 * f);
  const width = drawing.viewBox.baseVal.width;
  const x = Math.max(7 * f, 0.24 * width); // of the residual stream
  const side = x + 3.2 * f; // where the boxes of both halves begin
  const bend = side + 1.5 * f; // where their branches turn
  const boxWidth = width - side - 1.2 * f;
  const norm = (name) => {
    const index = facts.stages.findIndex((stage) => stage.name === name);
    return fixed(2)(at(norms, state.block, index, state.position));
  };
  const line = (points, kind) => svg("polyline", { points: points.join(" "), class: kind });
  const arrow = (px, py, dx) => svg("path", {
    class: "arrow",
    d: dx ? `M${px} ${py}l${-dx * 8} -4v8z` : `M${px} ${py}l-4 -8h8z`,
  });
  const box = (y, text, shape, left = side, wide = boxWidth) => [
    svg("rect", { x: left, y: y - 0.85 * f, width: wide, height: 1.7 * f, rx: 4, class: "box" }),
    label(left + 0.6 * f, y + 0.36 * f, text),
    label(left + wide - 0.6 * f, y + 0.36 * f, shape, "end", { class: "soft" }),
  ];
  const onStream = (y, text, shape) => box(y, text, shape, x - 2 * f, width - x + 2 * f - 1.2 * f);
  const plus = (y) => [
    svg("circle", { cx: x, cy: y, r: 0.7 * f, class: "box" }),
    label(x, y + 0.36 * f, "+", "middle"),
  ];
  const value = (y, name) => [
    label(x - f, y - 0.15 * f, name, "end", { class: "soft", "font-size": 0.9 * f }),
    label(x - f, y + 0.95 * f, norm(name), "end"),
  ];
  const half = (y, names, title, shape) => [
    line([[x, y], [bend, y], [bend, y + 3 * step], [x + 0.7 * f, y + 3 * step]], "branch"),
    ...box(y + step, names[0], "T H"),
    ...box(y + 2 * step, title, shape),
    arrow(x + 0.8 * f, y + 3 * step, -1),
    label(side + 2.4 * f, y + 3 * step - 0.4 * f, `${names[1]} ${norm(names[1])}`),
    ...plus(y + 3 * step),
  ];
  const top = 3.4 * step;
  const { H, V } = facts.sizes;
  const chosen = facts.tokens[state.position];
  const next = at(state.arrays["next-ids"], state.position, 0);
  const logP = at(state.arrays["next-log-p"], state.position, 0);
  drawing.append(
    svg("rect", { x: 0.5, y: top, width: width - 1, height: 10.1 * step, rx: 8, class: "frame" }),
    label(width - 0.8 * f, top + 1.5 * f, `block ${state.block}, one of ${L}`, "end", BOLD),
    line([[x, 0.7 * step], [x, 17.5 * step]], "stream"),
    label(x, 0.45 * step, `${shortLabel(chosen, 16)}  token ${chosen}`),
    ...onStream(1.4 * step, "word embeddings", `V ${whole(V)} → H ${whole(H)}`),
    ...onStream(2.6 * step, "layer norm", "T H"),
    ...value(top + 0.9 * step, "resid_pre"),
    ...half(top + 1.4 * step, ["ln1", "attn_out"], "attention, ALiBi", "N T S"),
    ...value(top + 5.1 * step, "resid_mid"),
    ...half(top + 5.7 * step, ["ln2", "mlp_out"], "MLP", "H → 4H → H"),
    ...value(top + 9.4 * step, "resid_post"),
    ...onStream(14.4 * step, "ln_f, layer norm", "T H"),
    ...onStream(15.6 * step, "lm_head", `H → V ${whole(V)}`),
    ...onStream(16.8 * step, "softmax", "T V"),
    arrow(x, 17.9 * step, 0),
    label(x, 18.6 * step, `${shortLabel(next, 16)}  ${percent(Math.exp(logP))}`),
  );
  show(figure, drawing, `Path of token ${state.position} through block ${state.block}`,
    `Numbers are norms at token ${state.position}. T = ${T} tokens, H = ${H}, N = ${N} heads.`);
}

/** Opacity for a share: its root, so that small shares can be seen. */
const opacity = (p) => Math.sqrt(p);
const LEVELS = 24;

/** One head's attention: a row for each query, cells of like opacity in one path. */
function drawAttention(figure, state, pattern) {
  const f = fontSize();
  const margin = Math.min(7 * f, 0.2 * widthOf(figure));
  const drawing = sheet(figure, (width) => width + 4 * f, 48 * f);
  const width = drawing.viewBox.baseVal.width;
  const cell = (width - margin - 2) / T;
  const size = cell.toFixed(2);
  const paths = Array.from({ length: LEVELS + 1 }, () => []);
  for (let query = 0; query < T; query++) {
    for (let key = 0; key <= query; key++) {
      const level = Math.round(LEVELS * opacity(share(pattern, state.head, query, key)));
      const corner = `${(margin + key * cell).toFixed(2)} ${(margin + query * cell).toFixed(2)}`;
      paths[level].push(`M${corner}h${size}v${size}h-${size}z`);
    }
  }
  drawing.append(svg("path", { class: "axis", d: `M${margin} ${margin}v${T * cell}h${T * cell}` }));
  paths.forEach((cells, level) => {
    if (level && cells.length) drawing.append(svg("path", {
      d: cells.join(""),
      class: "amount",
      "fill-opacity": level / LEVELS,
      "shape-rendering": "crispEdges",
    }));
  });
  const every = Math.ceil((1.15 * f) / cell);
  for (let i = 0; i < T; i++) {
    if (i % every && i !== state.position) continue;
    const weight = i === state.position ? BOLD : {};
    const middle = margin + (i + 0.5) * cell + 0.36 * f;
    const most = Math.max(3, Math.floor(margin / (0.62 * f)));
    const text = shortLabel(facts.tokens[i], most);
    if (i !== state.position && Math.abs(i - state.position) < every) continue;
    drawing.append(
      label(margin - 0.4 * f, middle, text, "end", weight),
      label(0, 0, text, "start", {
        ...weight,
        transform: `translate(${middle} ${margin - 0.4 * f}) rotate(-90)`,
      }),
    );
  }
  drawing.append(svg("rect", {
    x: margin,
    y: margin + state.position * cell,
    width: (state.position + 1) * cell,
    height: cell,
    class: "chosen",
    "stroke-width": Math.min(1.5, cell / 3),
  }));
  drawLegend(drawing, margin, margin + T * cell + 1.2 * f, Math.min(16 * f, T * cell), f);
  drawing.addEventListener("click", (event) => {
    const y = event.clientY - drawing.getBoundingClientRect().top;
    const query = Math.floor((y - margin) / cell);
    if (query >= 0 && query < T) choose({ position: query });
  });
  show(figure, drawing, `Attention of block ${state.block}, head ${state.head}`,
    `Block ${state.block}, head ${state.head}: ALiBi slope ${state.slope}. ` +
    "Queries down, keys across.");
}

function drawLegend(drawing, x, y, width, f) {
  for (let i = 0; i < 40; i++) {
    drawing.append(svg("rect", {
      x: x + (i * width) / 40, y, width: width / 40, height: 0.8 * f, class: "amount",
      "fill-opacity": opacity((i + 0.5) / 40), "shape-rendering": "crispEdges",
    }));
  }
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
    drawing.append(label(x + share * width, y + 2 * f, String(share), anchor, { class: "soft" }));
  }
}

/** Round numbers from 0 to at least `most`, some five of them. */
function ticks(most) {
  const rough = (most || 1) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough);
  const count = Math.ceil(most / step - 1e-9) || 1;
  return Array.from({ length: count + 1 }, (_, i) => Number((i * step).toPrecision(6)));
}

/** Lines over the layers. `series` are {name, kind, first, values}, from layer `first` on. */
function drawLines(figure, title, caption, yTitle, series) {
  const f = fontSize();
  const drawing = sheet(figure, (width) => Math.min(24 * f, 0.62 * width + 5 * f));
  const { width, height } = drawing.viewBox.baseVal;
  const steps = ticks(Math.max(...series.flatMap((s) => s.values)));
  const left = (1.6 + 0.62 * Math.max(...steps.map((t) => String(t).length))) * f;
  const [right, top, bottom] = [f, 3.6 * f, 3.2 * f];
  const xOf = (layer) => left + ((width - left - right) * layer) / L;
  const yOf = (y) => height - bottom - ((height - top - bottom) * y) / steps.at(-1);
  for (const y of steps) {
    drawing.append(
      svg("path", { class: "axis", d: `M${left} ${yOf(y)}H${width - right}` }),
      label(left - 0.5 * f, yOf(y) + 0.36 * f, String(y), "end", { class: "soft" }),
    );
  }
  const every = Math.ceil(((L + 1) * 2.2 * f) / (width - left - right));
  for (let layer = 0; layer <= L; layer += every) {
    const below = height - bottom + 1.4 * f;
    drawing.append(label(xOf(layer), below, String(layer), "middle", { class: "soft" }));
  }
  drawing.append(
    label(0, f, yTitle, "start", { class: "soft" }),
    label(width - right, height - 0.3 * f, "layer", "end", { class: "soft" }),
  );
  let x = 0;
  for (const { name, kind, first, values } of series) {
    const points = values.map((y, i) => `${xOf(first + i)},${yOf(y)}`);
    drawing.append(
      svg("polyline", { points: points.join(" "), class: `line ${kind}` }),
      svg("path", { class: `line ${kind}`, d: `M${x} ${2.3 * f}h${1.6 * f}` }),
      label(x + 2 * f, 2.65 * f, name),
    );
    x += (3.4 + 0.56 * name.length) * f;
  }
  show(figure, drawing, title, caption);
}

/** What each head, bias and MLP adds to the logit: blue for it, orange against it. */
function drawAttribution(figure, state, parts) {
  const f = fontSize();
  const columns = N + 2;
  const [left, top] = [4.6 * f, 2 * f];
  const tall = Math.max(0.5 * f, Math.min(3 * f, (34 * f) / L));
  const drawing = sheet(figure, top + L * tall + 2);
  const wide = (drawing.viewBox.baseVal.width - left - 2) / columns;
  const cell = { width: 0.95 * wide, height: 0.95 * tall };
  const rows = parts.heads.map((heads, i) => [...heads, parts.biases[i], parts.mlps[i]]);
  const most = Math.max(...rows.flat().map(Math.abs));
  const every = Math.ceil((1.9 * f) / wide);
  const narrow = wide < 2.2 * f;
  for (let j = 0; j < columns; j++) {
    const name = j < N ? (j % every ? "" : String(j)) : ["bias", "MLP"][j - N];
    if (narrow && j < N && (N + 2 - j) * wide < 4 * f) continue; // room for "MLP"
    if (j === N && narrow) continue;
    const anchor = j === N + 1 && narrow ? "end" : "middle";
    const x = anchor === "end" ? left + columns * wide : left + (j + 0.5) * wide;
    drawing.append(label(x, f, name, anchor, { class: "soft" }));
  }
  rows.forEach((row, i) => {
    const y = top + i * tall;
    const base = y + tall / 2 + 0.36 * f; // of text
    if (i % Math.ceil((1.3 * f) / tall) === 0) {
      drawing.append(label(left - 0.6 * f, base, `block ${i}`, "end", { class: "soft" }));
    }
    row.forEach((amount, j) => {
      const x = left + j * wide;
      drawing.append(svg("rect", {
        x,
        y,
        ...cell,
        class: amount < 0 ? "against" : "amount",
        "fill-opacity": 0.6 * opacity(Math.abs(amount) / most), // so that numbers stay readable
      }));
      if (wide < 3 * f) return;
      const small = { "font-size": 0.88 * f };
      drawing.append(label(x + cell.width / 2, base, fixed(2)(amount), "middle", small));
    });
  });
  drawing.append(svg("rect", {
    x: left + state.head * wide,
    y: top + state.block * tall,
    ...cell,
    class: "chosen",
    "stroke-width": 1.5,
  }));
  show(figure, drawing, "Direct logit attribution by head and MLP",
    `Columns are heads, then the biases of attention, then the MLP. Block ${state.block}, head ` +
    `${state.head} adds ${fixed(4)(parts.heads[state.block][state.head])}.`);
}
