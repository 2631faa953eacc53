// What the page shows, and what changes it.

const $ = (id) => document.getElementById(id);
const state = { position: T - 1, block: 0, head: 0, layer: L, slope: "", arrays: {} };

/** Change what is shown. */
function choose(change) {
  Object.assign(state, change);
  draw();
}

let drawn = 0;

async function draw() {
  const turn = ++drawn;
  const { arrays, position, block, head } = state;
  state.slope = String(Number(facts.slopes[head].toPrecision(6)));
  $("position").value = position;
  $("block").value = block;
  $("head").value = head;
  check($("tokens"), position);
  check($("heads"), head);
  fillNext($("next"), $("next-title"), state);
  drawPath($("path"), state, arrays.norms);
  fillStages($("stages"), state, arrays.norms);
  fillLens($("lens"), state);
  describeLens($("lens-detail"), state);
  drawLayers();
  drawParts();
  fillBill($("bill"), block);
  const pattern = await attentionOf(block);
  if (turn !== drawn) return; // something else was chosen meanwhile
  drawHeads($("heads"), pattern);
  drawAttention($("attention"), state, pattern);
  fillRow($("row"), $("row-title"), state, pattern);
  document.body.dataset.drawn = `${position} ${block} ${head}`;
}

function drawParts() {
  if (!("parts-logit" in state.arrays)) {
    $("attribution-lead").textContent = "This model's residuals begin after its layer norms, so " +
      "that a logit is no sum over all blocks.";
    return;
  }
  const parts = partsAt(state.arrays, state.position);
  fillParts($("parts"), $("attribution-lead"), state.position, parts);
  drawAttribution($("attribution"), state, parts);
}

function drawLayers() {
  const { arrays, position } = state;
  const index = (name) => facts.stages.findIndex((stage) => stage.name === name);
  const blocks = [...Array(L).keys()];
  const layers = [...Array(L + 1).keys()];
  const norms = (name) => blocks.map((i) => at(arrays.norms, i, index(name), position));
  const stream = [norms("resid_pre")[0], ...norms("resid_post")];
  drawLines($("norms"), `Norms at token ${position} by layer`,
    `At token ${position}: the residual stream, and what each half of the block before adds.`,
    "norm", [
      { name: "stream", kind: "first", first: 0, values: stream },
      { name: "attention", kind: "second", first: 1, values: norms("attn_out") },
      { name: "MLP", kind: "third", first: 1, values: norms("mlp_out") },
    ]);
  const entropy = (i) => layers.map((layer) => at(arrays["lens-entropy"], layer, i));
  const all = [...Array(T).keys()].map(entropy);
  const mean = layers.map((layer) => all.reduce((sum, e) => sum + e[layer], 0) / T);
  drawLines($("entropy"), `Entropy at token ${position} by layer`,
    `Of the logit lens; knowing nothing would be ln V = ${fixed(2)(Math.log(facts.sizes.V))} nats.`,
    "entropy, nats", [
      { name: "this token", kind: "first", first: 0, values: all[position] },
      { name: "mean of all", kind: "third", first: 0, values: mean },
    ]);
}

function options(select, texts) {
  select.append(...texts.map((text, i) => html("option", { value: i }, text)));
  select.addEventListener("change", () => choose({ [select.id]: Number(select.value) }));
}

function buildTheme(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const tell = () => button.setAttribute("aria-pressed", String(dark()));
  button.onclick = () => {
    root.dataset.theme = dark() ? "light" : "dark";
    tell();
    draw();
  };
  system.addEventListener("change", () => {
    tell();
    draw();
  });
  tell();
}

async function start() {
  const { H, V } = facts.sizes;
  $("text").textContent = facts.text || facts.tokens.join(" ");
  $("text").classList.toggle("long", facts.text.length > 160);
  $("summary").textContent = `${T} tokens through ${L} blocks of ${N} heads, ${whole(H)} wide, ` +
    `to a vocabulary of ${whole(V)}. Every number on this page is the trace's.`;
  for (const element of document.querySelectorAll("[data-size]")) {
    element.textContent = whole(facts.sizes[element.dataset.size]);
  }
  for (const name of facts.arrays) state.arrays[name] = await unpack(name);
  options($("position"), facts.tokens.map((id, i) => `${i}  ${shortLabel(id, 16)}`));
  options($("block"), [...Array(L).keys()].map(String));
  options($("head"), facts.slopes.map((slope, i) => `${i}, slope ${slope.toPrecision(3)}`));
  buildTokens($("tokens"));
  buildHeads($("heads"));
  buildTheme($("theme"));
  $("lens").addEventListener("keydown", (event) => moveInLens($("lens"), event));
  await draw();
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth !== width) draw();
    width = innerWidth;
  });
}

start();
