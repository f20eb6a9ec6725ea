// The detector in a browser: pixels in, score out, with onnxruntime-web's WebAssembly. Independent of the page.

import * as ort from "./ort/ort.wasm.min.mjs.js";

export const RUNTIME_VERSION = ort.env.versions.web;
const MAP_STEP = 8;
const MIN_SCORE = 1e-6; // differences of smaller scores are divided by this value, as in the exporter's check

const beside = (name) => new URL(name, import.meta.url).href;
ort.env.wasm.numThreads = 1; // more threads need headers that a plain file server doesn't send
ort.env.wasm.wasmPaths = {
  mjs: beside("ort/ort-wasm-simd-threaded.mjs.js"),
  wasm: beside("ort/ort-wasm-simd-threaded.wasm"),
};

/** An exported detector and its golden.json (`about`). Older files call the output `anomaly_map` `error_map`. */
export class Detector {
  #session;
  #last = Promise.resolve();

  constructor(session, about) {
    this.#session = session;
    this.about = about;
    this.channels = about.image_channels;
    this.inputSize = about.frame ?? null;
    this.threshold = about.threshold;
    this.mapUnit = about.map_unit ?? null; // "score": the anomaly map is in units of the score
  }

  /** Loads `golden.json` and `detector.onnx` from the page's folder. */
  static async load() {
    const [about, model] = await Promise.all([
      fetchFile("golden.json").then((answer) => answer.json()),
      fetchFile("detector.onnx").then((answer) => answer.arrayBuffer()),
    ]);
    const options = { executionProviders: ["wasm"], logSeverityLevel: 3 };
    return new Detector(await ort.InferenceSession.create(new Uint8Array(model), options), about);
  }

  /**
   * Scores one image, after all earlier calls have finished.
   *
   * @param {{data: Uint8Array, height: number, width: number}} image Bytes row by row, channels last, `channels` of them.
   * @returns {Promise<{score: number, ms: number, maps: {name: string, values: ArrayLike<number>, dims: number[]}[]}>}
   *   ms: from these bytes to the score.
   */
  score(image) {
    const result = this.#last.then(() => this.#run(image)); // the runtime takes one call at a time
    this.#last = result.catch(() => {});
    return result;
  }

  async #run({ data, height, width }) {
    const start = performance.now();
    const tensor =
      this.about.input === "uint8"
        ? new ort.Tensor("uint8", data, [1, height, width, this.channels])
        : new ort.Tensor("float32", toPlanes(data, this.channels), [1, this.channels, height, width]);
    const outputs = await this.#session.run({ [this.#session.inputNames[0]]: tensor });
    const score = outputs.score.data[0];
    const ms = performance.now() - start;
    const maps = ["reconstruction", "anomaly_map", "error_map"]
      .filter((name) => name in outputs)
      .map((name) => ({ name, values: outputs[name].data, dims: outputs[name].dims.slice(1) }));
    return { score, ms, maps };
  }
}

/** The file's output `is_anomaly` for any threshold: a comparison of float32 numbers. */
export const isAnomaly = (score, threshold) => score > Math.fround(threshold);

/**
 * Pixels of a picture at its own size, as the package reads them: upright, without colour management.
 *
 * @param {Blob} file
 * @param {number} channels 1 for grey, 3 for RGB.
 * @param {[number, number] | null} inputSize Height and width that the detector requires; null for any.
 */
export async function readPicture(file, channels, inputSize) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(file, options);
  return { ...readPixels(bitmap, bitmap.width, bitmap.height, channels, inputSize), source: bitmap };
}

/** Pixels of anything a canvas can draw; `resized` if the browser had to change its size. */
export function readPixels(source, sourceWidth, sourceHeight, channels, inputSize, canvas = new OffscreenCanvas(1, 1)) {
  const [height, width] = inputSize ?? [sourceHeight, sourceWidth];
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, width, height);
  const rgba = context.getImageData(0, 0, width, height).data;
  const resized = height !== sourceHeight || width !== sourceWidth;
  return { ...toBytes(rgba, channels), height, width, sourceHeight, sourceWidth, resized };
}

/** Grey (Pillow's luma, in whole numbers) or RGB bytes of RGBA, and whether any pixel was transparent. */
export function toBytes(rgba, channels) {
  const data = new Uint8Array((rgba.length / 4) * channels);
  let transparent = false;
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    if (channels === 1) {
      data[to++] = (rgba[from] * 19595 + rgba[from + 1] * 38470 + rgba[from + 2] * 7471 + 0x8000) >> 16;
    } else {
      data[to++] = rgba[from];
      data[to++] = rgba[from + 1];
      data[to++] = rgba[from + 2];
    }
    transparent ||= rgba[from + 3] !== 255;
  }
  return { data, transparent };
}

/** Replays the golden vectors, and checks that this browser reads back the pixels that were written to a canvas. */
export async function selfTest(detector) {
  const { cases, tolerance } = detector.about;
  const times = [];
  const scores = [];
  let largest = 0;
  let largestOfMaps = null;
  let decisionsEqual = true;
  for (const { height, width, pixels, score: expected, is_anomaly: verdict, anomaly_map: map } of cases) {
    const { score, ms, maps } = await detector.score({ data: fromBase64(pixels), height, width });
    const difference = Math.abs(score - expected) / Math.max(Math.abs(expected), MIN_SCORE);
    largest = difference <= largest ? largest : difference; // so that NaN stays
    decisionsEqual &&= isAnomaly(score, detector.threshold) === verdict;
    if (map) {
      const found = mapDifference(maps.find(({ name }) => name === "anomaly_map"), map);
      largestOfMaps = found <= (largestOfMaps ?? 0) ? (largestOfMaps ?? 0) : found;
    }
    scores.push(score);
    times.push(ms);
  }
  return {
    passed: largest <= tolerance && (largestOfMaps ?? 0) <= tolerance && decisionsEqual && cases.length > 0,
    max_map_difference: largestOfMaps,
    cases: cases.length,
    max_relative_difference: largest,
    tolerance,
    verdicts_equal: decisionsEqual,
    canvas_exact: canvasIsExact(),
    scores,
    ms_median: median(times),
    runtime: RUNTIME_VERSION,
  };
}

/** Largest difference of a map from its golden values, relative to the largest of these; they are every 8th of every 8th row. */
function mapDifference({ values, dims: [, width] }, expected) {
  const largest = Math.max(...expected.flat().map(Math.abs), MIN_SCORE);
  const differences = expected.flatMap((row, i) =>
    row.map((value, j) => Math.abs(values[MAP_STEP * (i * width + j)] - value)),
  );
  return Math.max(...differences) / largest;
}

export function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

async function fetchFile(name) {
  const answer = await fetch(beside(name), { cache: "no-cache" }); // an exported file may have been replaced
  if (!answer.ok) throw new Error(`The server gave no ${name}: ${answer.status} ${answer.statusText}`);
  return answer;
}

/** Bytes (H, W, C) as float32 (C, H, W) from 0 to 1. */
function toPlanes(data, channels) {
  const size = data.length / channels;
  const planes = new Float32Array(data.length);
  for (let i = 0; i < size; i++) {
    for (let c = 0; c < channels; c++) planes[c * size + i] = data[i * channels + c] / 255;
  }
  return planes;
}

const fromBase64 = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));

/** False if the browser adds noise to pixels that are read back, as some do against fingerprinting. */
function canvasIsExact() {
  const written = new ImageData(32, 32);
  written.data.forEach((_, i) => (written.data[i] = i % 4 === 3 ? 255 : (i * 37) % 256));
  const context = new OffscreenCanvas(32, 32).getContext("2d", { willReadFrequently: true, colorSpace: "srgb" });
  context.putImageData(written, 0, 0);
  return context.getImageData(0, 0, 32, 32).data.every((value, i) => value === written.data[i]);
}
