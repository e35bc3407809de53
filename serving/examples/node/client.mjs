#!/usr/bin/env node
// Runs a Vigil bundle without Vigil's Python: texts and images. See docs/bundle-without-vigil.md.
//
//   node client.mjs check BUNDLE                 the golden cases
//   node client.mjs score BUNDLE ITEMS.jsonl     one decision per line; items as in BUNDLE/golden/items.jsonl
//   node client.mjs time BUNDLE ITEMS.jsonl      milliseconds per item, one item at a time
import { createHash } from "node:crypto";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { Tokenizer } from "@huggingface/tokenizers";
import ort from "onnxruntime-node";
import { pixelsOf } from "./images.mjs";

const FORMAT = 6;
const TOLERANCE = 1e-4;
const BATCH = 16;
// Threads that spin while they wait for the next operator slow down whatever else runs on the cores.
const SESSION = { extra: { session: { intra_op: { allow_spinning: "0" } } } };

/** A mistake of the user or a bundle that cannot be run: one line, exit status 2. */
class UserError extends Error {}

export class Client {
  /** Loads a bundle: hashes, tokenizer, and one session for each graph. */
  static async load(path) {
    if (!existsSync(join(path, "bundle.json"))) throw new UserError(`${path} is not a bundle: it has no bundle.json`);
    const read = (name) => JSON.parse(readFileSync(join(path, name), "utf8"));
    const bundle = read("bundle.json");
    if (bundle.format !== FORMAT) throw new UserError(`${path}: a bundle of format ${bundle.format}, but this client reads ${FORMAT}`);
    for (const [name, { sha256 }] of Object.entries(read("manifest.json").files)) {
      const found = existsSync(join(path, name)) && createHash("sha256").update(readFileSync(join(path, name))).digest("hex");
      if (found !== sha256) throw new UserError(`${path}: ${name} is missing or was changed after the export`);
    }
    const client = new Client();
    Object.assign(client, { path, bundle, inputs: read("inputs.json"), sessions: {} });
    client.actions = existsSync(join(path, "policy.json")) ? read("policy.json").actions : null;
    if (client.inputs.text) client.tokenizer = new PassageTokenizer(read(client.inputs.text.tokenizer), client.inputs.text);
    for (const name of [...bundle.modalities.filter((m) => m !== "audio"), "fusion", "decisions"])
      client.sessions[name] = await ort.InferenceSession.create(join(path, bundle.graphs[name].file), SESSION);
    return client;
  }

  /** Decides items {id, text: [string], image: [Buffer or base64], ...columns}; all are one batch. An entry may be an object
   *  with a role: {role, text, start, end} or {role, data}. */
  async decide(items) {
    const feeds = { rows: int64(items.map((_, row) => row)) };
    for (const modality of this.bundle.modalities) {
      const { segments, rows, roles, times } = await this.segments(modality, items);
      const fusion = this.bundle.graphs.fusion;
      const [, perSegment, width] = fusion.inputs[`${modality}_tokens`].shape;
      feeds[`${modality}_item`] = int64(rows);
      const known = fusion.codes[`${modality}_role`];
      const unknown = known && roles.find((role) => !known.includes(role));
      if (unknown) throw new UserError(`${modality} has the role ${unknown}; the bundle knows ${known.join(", ")}`);
      if (known) feeds[`${modality}_role`] = int64(roles.map((role) => known.indexOf(role)));
      if (fusion.inputs[`${modality}_time`]) feeds[`${modality}_time`] = new ort.Tensor("float32", times.flat(), [times.length, 2]);
      feeds[`${modality}_tokens`] = segments.length
        ? (await this.sessions[modality].run(this.encoderInputs(modality, segments))).tokens
        : new ort.Tensor("float32", [], [0, perSegment, width]);
    }
    const { probabilities } = await this.sessions.fusion.run(feeds);
    const { codes, inputs } = this.bundle.graphs.decisions;
    const columns = Object.entries(codes).map(([input, values]) => {
      const codeOf = (item) => values.indexOf(String(item[input.slice("column_".length)])); // -1 if there is none
      return [input, int64(items.map(codeOf))];
    });
    const given = { ...feeds, ...Object.fromEntries(columns), probabilities };
    const taken = Object.fromEntries(Object.keys(inputs).map((name) => [name, given[name]]));
    return this.toDecisions(items, await this.sessions.decisions.run(taken));
  }

  /** The segments of all items of one modality; the row of each segment's item, its role, and its start and end (-1: no time). */
  async segments(modality, items) {
    const [segments, rows, roles, times] = [[], [], [], []];
    for (const [row, item] of items.entries()) {
      const media = item[modality] ?? [];
      if (modality === "audio" && media.length) throw new UserError(`item ${item.id}: this client does not decode audio`);
      let found = [];
      for (const [index, medium] of media.entries()) {
        const given = typeof medium === "string" || Buffer.isBuffer(medium) ? { text: medium, data: medium } : medium;
        let made = [];
        if (modality === "text") made = this.tokenizer.passages(given.text, this.inputs.text.max_passages - found.length);
        else if (found.length < this.inputs.image.max_images) made = [await this.image(item.id, index, given.data)];
        found.push(...made);
        roles.push(...made.map(() => given.role ?? "body"));
        times.push(...made.map(() => [given.start ?? -1, given.end ?? -1]));
      }
      segments.push(...found);
      rows.push(...found.map(() => row));
    }
    return { segments, rows, roles, times };
  }

  async image(id, index, image) {
    try {
      return await pixelsOf(typeof image === "string" ? Buffer.from(image, "base64") : image, this.inputs.image);
    } catch (error) {
      throw new UserError(`item ${id}: image[${index}]: ${error.message.split("\n")[0]}`);
    }
  }

  encoderInputs(modality, segments) {
    const count = segments.length;
    if (modality === "image") {
      const [size, pixels] = [this.inputs.image.size, new Uint8Array(segments.reduce((sum, s) => sum + s.length, 0))];
      segments.forEach((segment, place) => pixels.set(segment, place * segment.length));
      return { pixels: new ort.Tensor("uint8", pixels, [count, 3, size, size]) };
    }
    const longest = Math.max(...segments.map((ids) => ids.length));
    const padded = (entry) => int64(segments.flatMap((ids) => Array.from({ length: longest }, (_, t) => entry(ids, t))), [count, longest]);
    return { input_ids: padded((ids, t) => ids[t] ?? 0), attention_mask: padded((ids, t) => Number(t < ids.length)) };
  }

  toDecisions(items, { calibrated, labels, action, review }) {
    const names = this.bundle.labels;
    return items.map((item, row) => {
      const [from, to] = [row * names.length, (row + 1) * names.length];
      return {
        id: item.id,
        probabilities: Object.fromEntries(names.map((name, i) => [name, calibrated.data[from + i]])),
        labels: names.filter((_, i) => labels.data.slice(from, to)[i]),
        action: action ? this.actions[Number(action.data[row])] : null,
        review: review ? Boolean(review.data[row]) : false,
      };
    });
  }
}

const LETTERS = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}";
const WORDS = new RegExp(`[${LETTERS}]+|[^${LETTERS}\\p{White_Space}]+`, "gu");

const SEPARATED = /(?<![^ ])(?=(?:[0-9] )*[A-Za-z] (?:[0-9] )*[A-Za-z](?![^ ]))[A-Za-z0-9](?: [A-Za-z0-9]){2,}(?![^ ])/g;
const LEETSPEAK = /(?<![A-Za-z0-9])(?=[0-9]*[A-Za-z])[A-Za-z]*[013457][A-Za-z013457]*(?![A-Za-z0-9])/g;
const LEET_LETTERS = { 0: "o", 1: "i", 3: "e", 4: "a", 5: "s", 7: "t" };

/** Returns the normalization of text: NFKC, the longest entry of the table at each place, words, until nothing changes. */
function normalizer({ unicode, replacements, separated, leetspeak }) {
  const longest = Math.max(0, ...Object.keys(replacements).map((key) => key.length));
  return (text) => {
    for (let before = null; text !== before; ) {
      before = text;
      const ascii = !/[^\0-\x7f]/.test(text); // which neither NFKC nor the table changes
      if (unicode === "nfkc" && !ascii) text = text.normalize("NFKC");
      let made = ascii ? text : "";
      for (let place = made.length, length; place < text.length; place += length || 1) {
        for (length = longest; length && !Object.hasOwn(replacements, text.slice(place, place + length)); ) length -= 1;
        made += length ? replacements[text.slice(place, place + length)] : text[place];
      }
      text = made;
      if (separated === "join") text = text.replace(SEPARATED, (word) => word.replaceAll(" ", ""));
      if (leetspeak === "fold") text = text.replace(LEETSPEAK, (word) => word.replace(/[013457]/g, (digit) => LEET_LETTERS[digit]));
    }
    return text;
  };
}

/** Splits text into passages of token ids, as the Python tokenizer does with truncation and a stride. */
class PassageTokenizer {
  constructor(definition, { max_tokens, overlap, normalize }) {
    this.normalize = normalize ? normalizer(normalize) : (text) => text;
    // Without the special tokens, a typed "[SEP]" is read as plain text.
    const added = definition.added_tokens ?? [];
    this.special = new Map(added.filter((token) => token.special).map((token) => [token.content, token.id]));
    this.tokenizer = new Tokenizer({ ...definition, added_tokens: added.filter((token) => !token.special) }, {});
    // The library splits "Whitespace" by ASCII letters alone; the Rust library, by those of Unicode.
    if (definition.pre_tokenizer?.type === "Whitespace") this.tokenizer.pre_tokenizer = (part) => part.match(WORDS) ?? [];
    this.room = max_tokens - this.withSpecial([]).length;
    this.step = this.room - overlap;
  }

  withSpecial(tokens) {
    const processor = this.tokenizer.post_processor;
    return processor ? processor(tokens, null, true).tokens : tokens;
  }

  passages(text, limit) {
    if (!text.trim()) return [];
    const normalized = this.normalize(text.replace(/\p{Surrogate}/gu, "\ufffd"));
    const tokens = this.tokenizer.encode(normalized, { add_special_tokens: false }).tokens;
    const passages = [];
    for (let start = 0; start < tokens.length && passages.length < limit; start += this.step) {
      passages.push(this.withSpecial(tokens.slice(start, start + this.room)).map((token) => this.id(token)));
      if (start + this.room >= tokens.length) break;
    }
    return passages;
  }

  id(token) {
    return this.special.get(token) ?? this.tokenizer.token_to_id(token) ?? this.tokenizer.model.unk_token_id;
  }
}

function int64(values, shape = [values.length]) {
  return new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
}

const readLines = (path) => {
  if (!existsSync(path)) throw new UserError(`${path}: no such file`);
  return readFileSync(path, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
};

/** Compares the decisions on the golden cases with those of the trained model; returns whether all agree. */
async function check(client) {
  const golden = (name) => readLines(join(client.path, "golden", name));
  const expected = new Map(golden("decisions.jsonl").map((line) => [line.case, line.decisions]));
  const cases = golden("items.jsonl");
  const supported = cases.filter(({ items }) => items.every((item) => !item.audio.length || !client.bundle.modalities.includes("audio")));
  let [largest, decisions, differing, worst] = [0, 0, 0, null];
  for (const { case: name, items } of supported) {
    for (const [row, found] of (await client.decide(items)).entries()) {
      const due = expected.get(name)[row];
      const differences = client.bundle.labels.map((label) => Math.abs(found.probabilities[label] - due.probabilities[label]));
      const difference = differences.some(Number.isNaN) ? 1 : Math.max(...differences);
      const decided = ({ labels, action, review }) => JSON.stringify([labels, action, review]);
      const other = decided(found) !== decided(due);
      if (other || difference > largest) worst = name;
      largest = Math.max(largest, difference);
      decisions += 1;
      differing += other;
    }
  }
  const skipped = cases.length - supported.length;
  console.log(`${supported.length} golden cases, ${decisions} items: largest difference of a probability ${largest.toExponential(1)}, ` +
    `${differing} items with another decision${skipped ? `; ${skipped} cases with audio were not run` : ""}`);
  if (differing || largest > TOLERANCE) console.log(`does not agree with the trained model; the worst is golden case ${worst}`);
  return !differing && largest <= TOLERANCE;
}

async function score(client, items) {
  for (let start = 0; start < items.length; start += BATCH)
    for (const decision of await client.decide(items.slice(start, start + BATCH))) console.log(JSON.stringify(decision));
}

async function time(client, items) {
  const spent = [];
  for (let pass = 0; pass < 3; pass++)
    for (const item of items) {
      const start = performance.now();
      await client.decide([item]);
      if (pass) spent.push(performance.now() - start); // the first pass warms up
    }
  spent.sort((a, b) => a - b);
  console.log(JSON.stringify({ items: items.length, median_ms: spent[spent.length >> 1] }));
}

async function main([command, path, file]) {
  if (!["check", "score", "time"].includes(command) || !path || (command !== "check" && !file))
    throw new UserError("usage: client.mjs check BUNDLE | score BUNDLE ITEMS.jsonl | time BUNDLE ITEMS.jsonl");
  const client = await Client.load(path);
  if (command === "check") process.exitCode = (await check(client)) ? 0 : 1;
  else await (command === "score" ? score : time)(client, readLines(file));
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`error: ${error instanceof UserError ? error.message : error.stack}`);
  process.exitCode = error instanceof UserError ? 2 : 1;
});
