// The numbers, from the script elements that hold them.

const facts = JSON.parse(document.getElementById("facts").textContent);
const { T, L, N } = facts.sizes;

const VIEWS = { float32: Float32Array, int32: Int32Array, uint16: Uint16Array };

/** An array of the page: {data, shape}. Unpacked anew each time, see `attentionOf`. */
async function unpack(name) {
  const element = document.getElementById(`array-${name}`);
  const packed = Uint8Array.from(atob(element.textContent), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  return {
    data: new VIEWS[element.dataset.dtype](buffer),
    shape: element.dataset.shape.split(" ").map(Number),
  };
}

let held = { number: -1, array: null };

/** The attention of one block. Only the one that was asked for last is held. */
async function attentionOf(number) {
  if (held.number !== number) held = { number, array: await unpack(`pattern-${number}`) };
  return held.array;
}

/** The share that a query takes of a key, from an array that `attentionOf` gave. */
function share(array, head, query, key) {
  const cell = (query * (query + 1)) / 2 + key;
  return array.data[head * array.shape[1] + cell] / facts.patternSteps;
}

/** An element of an array by its indices. */
function at(array, ...indices) {
  return array.data[indices.reduce((sum, index, axis) => sum * array.shape[axis] + index, 0)];
}

/** What each part adds to the logit of the likeliest token after a position. */
function partsAt(arrays, position) {
  const blocks = [...Array(L).keys()];
  const embedding = at(arrays["parts-embedding"], position);
  const heads = blocks.map((i) =>
    facts.slopes.map((_, head) => at(arrays["parts-heads"], position, i, head)));
  const biases = blocks.map((i) => at(arrays["parts-biases"], position, i));
  const mlps = blocks.map((i) => at(arrays["parts-mlps"], position, i));
  const finalBias = at(arrays["parts-final-bias"], position);
  const sum = [embedding, ...heads.flat(), ...biases, ...mlps, finalBias].reduce((a, b) => a + b);
  const token = at(arrays["next-ids"], position, 0);
  const logit = at(arrays["parts-logit"], position);
  return { token, embedding, heads, biases, mlps, finalBias, sum, logit };
}

const labelOf = (tokenId) => facts.labels[tokenId];

// Numbers as people read them.

const fixed = (digits) => (x) => x.toFixed(digits).replace(/^-(?=[0.]*$)/, "").replace("-", "−");
const percent = (x) => `${fixed(x < 0.1 ? 2 : 1)(100 * x)} %`;
const whole = (x) => x.toLocaleString("en-US");

/** Four digits and a unit's prefix: 1.234 M. */
function short(x) {
  const steps = ["", "k", "M", "G", "T", "P"];
  let i = 0;
  while (x >= 1000 && i < steps.length - 1) {
    x /= 1000;
    i += 1;
  }
  return `${i ? Number(x.toPrecision(4)) : x} ${steps[i]}`;
}
