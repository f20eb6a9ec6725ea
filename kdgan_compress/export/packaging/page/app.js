// The page: pictures and camera frames to scores, one threshold for all of them.

import { Detector, RUNTIME_VERSION, isAnomaly, median, readPicture, readPixels, selfTest } from "./detector.js";
import { drawOverlay, heat } from "./overlay.js";

document.documentElement.dataset.state = "loading"; // shows the page; over file:// no module runs and a hint stays

const RECENT = 30; // frames in the median of times
const SPARKS = 120; // frames in the curve
const VIEW_SIDE = 320; // pixels of a thumbnail's longer side
const QUIET_MS = 1500; // least time between two camera verdicts read aloud

const $ = (id) => document.getElementById(id);
const part = (element, selector) => element.querySelector(selector);
const short = (number) => (Number.isFinite(number) ? String(Number(number.toPrecision(4))) : "not a number");
const figures = (number) => (Math.abs(number) < 1000 ? number.toPrecision(4) : short(number)); // all of one length

const pictures = []; // {tile, score, map} of all that could be scored
const times = [];
let detector;
let threshold = 0;
let seen = { low: 0, high: 0 }; // the scores so far
let camera = null; // {stream, scores, frames, canvas, drawn} while it runs
let queue = Promise.resolve();

// Threshold

function setThreshold(value, { keepNumber = false } = {}) {
  threshold = value;
  fitScale();
  $("threshold").value = value;
  if (!keepNumber) $("threshold-number").value = Number(value.toPrecision(6));
  $("reset").disabled = value === detector.threshold;
  for (const { tile, score, map } of pictures) {
    showScore(tile, score);
    if (map) drawOverlay(part(tile, ".overlay"), map, threshold);
  }
  if (camera?.scores.length) showScore($("camera"), camera.scores.at(-1));
  showCounts();
}

function fitScale() {
  const slider = $("threshold");
  const usual = 3 * Math.abs(detector.threshold);
  slider.min = Math.min(0, -usual * (detector.threshold < 0), seen.low, threshold);
  slider.max = Math.max(usual, 1.05 * seen.high, threshold) || 1;
  slider.style.setProperty("--at", `${100 * place(threshold)}%`);
  slider.setAttribute("aria-valuetext", short(threshold));
  for (const mark of $("strip").children) mark.style.left = `${100 * place(Number(mark.dataset.score))}%`;
}

/** Where on the scale a score lies, 0 to 1. */
function place(score) {
  const { min, max } = $("threshold");
  return Math.min(1, Math.max(0, (score - min) / (max - min)));
}

function see(score) {
  if (!Number.isFinite(score) || (score >= seen.low && score <= seen.high)) return;
  seen = { low: Math.min(seen.low, score), high: Math.max(seen.high, score) };
  setThreshold(threshold, { keepNumber: true });
}

// What a tile or the camera shows

function showScore(element, score) {
  const anomaly = isAnomaly(score, threshold);
  element.dataset.verdict = anomaly ? "anomaly" : "normal";
  element.dataset.score = score;
  const verdict = part(element, ".verdict");
  const word = anomaly ? "▲ anomaly" : "✓ normal";
  if (verdict.textContent !== word) verdict.textContent = word;
  part(element, ".score").textContent = figures(score);
  const bar = part(element, ".bar");
  bar.hidden = false;
  part(bar, "i").style.width = `${100 * place(score)}%`;
  part(bar, "b").style.left = `${100 * place(threshold)}%`;
  if (element.mark) element.mark.dataset.verdict = element.dataset.verdict;
}

function showCounts() {
  const anomalies = pictures.filter(({ score }) => isAnomaly(score, threshold)).length;
  $("num-pictures").textContent = pictures.length;
  $("num-anomalies").textContent = anomalies;
  return `${pictures.length} ${pictures.length === 1 ? "picture" : "pictures"}, ${anomalies} above the threshold`;
}

function took(ms) {
  times.push(ms);
  if (times.length > RECENT) times.shift();
  $("ms").textContent = median(times).toFixed(1);
}

function showNotes(element, { resized, transparent, sourceWidth, sourceHeight, width, height }) {
  const notes = [];
  if (resized) {
    notes.push(`The browser resized it from ${sourceWidth} × ${sourceHeight} to the detector's ${width} × ${height}; a device may resize otherwise.`);
  }
  if (transparent) notes.push("It has transparent parts, which a device reads otherwise: save it without transparency.");
  part(element, ".note").hidden = notes.length === 0;
  part(element, ".note").textContent = notes.join(" ");
}

/**
 * Draws what the detector gives beside the score: a map in units of the score over the picture or the camera, other
 * maps on small canvases of their own. Returns the map over the picture, or undefined.
 */
function showMaps(views, maps) {
  const over = maps.find(({ name }) => name === "anomaly_map" && detector.mapUnit === "score");
  if (over) drawOverlay(overlayOf(views), over, threshold);
  for (const { name, values, dims } of maps) {
    if (over && name === "anomaly_map") continue;
    let canvas = part(views, `canvas[data-map="${name}"]`);
    if (!canvas) {
      const figure = document.createElement("figure");
      figure.className = "view map";
      canvas = document.createElement("canvas");
      canvas.dataset.map = name;
      canvas.role = "img";
      canvas.ariaLabel = name.replace("_", " ");
      const caption = document.createElement("figcaption");
      caption.textContent = canvas.ariaLabel;
      figure.append(canvas, caption);
      views.append(figure);
    }
    const planes = !(values instanceof Uint8Array) && name === "reconstruction"; // (C, S, S) from 0 to 1, or (S, S, C) bytes
    const [height, width] = planes ? dims.slice(1) : dims;
    const channels = planes ? dims[0] : (dims[2] ?? 1);
    const at = planes
      ? (pixel, c) => 255 * values[c * width * height + pixel]
      : (pixel, c) => values[pixel * channels + c];
    const image = new ImageData(width, height);
    for (let pixel = 0; pixel < width * height; pixel++) {
      const colour = name.endsWith("_map") ? heat(values[pixel]) : [0, channels >> 1, channels - 1].map((c) => at(pixel, c));
      image.data.set([...colour, 255], 4 * pixel);
    }
    Object.assign(canvas, { width, height });
    canvas.getContext("2d").putImageData(image, 0, 0);
  }
  return over;
}

/** The canvas over the picture or video, of its size. */
function overlayOf(views) {
  let canvas = part(views, ".overlay");
  if (!canvas) {
    canvas = document.createElement("canvas");
    canvas.className = "overlay";
    canvas.dataset.map = "anomaly_map";
    canvas.role = "img";
    canvas.ariaLabel = "anomaly map";
    part(views, ".view").append(canvas);
  }
  const below = part(views, ".view > *");
  const { videoWidth, videoHeight } = below;
  const scale = videoWidth ? Math.min(1, (2 * VIEW_SIDE) / Math.max(videoWidth, videoHeight)) : 1;
  const width = Math.round((videoWidth ?? below.width) * scale);
  const height = Math.round((videoHeight ?? below.height) * scale);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  return canvas;
}

// Pictures

/** Makes a tile for each file at once and scores them one after the other. */
function addFiles(files) {
  for (const file of files) {
    const tile = part($("tile").content.cloneNode(true), "li");
    tile.dataset.name = file.name;
    part(tile, ".file").textContent = file.name;
    $("tiles").append(tile);
    queue = queue.then(() => scoreFile(tile, file));
  }
  $("pictures").hidden = $("tiles").children.length === 0;
  queue = queue.then(() => ($("announcer").textContent = showCounts()));
}

async function scoreFile(tile, file) {
  if (!tile.isConnected) return; // cleared before its turn
  try {
    const picture = await readPicture(file, detector.channels, detector.inputSize).catch(() => {
      throw new Error("This is no picture that the browser can read.");
    });
    drawThumbnail(part(tile, "canvas"), picture);
    part(tile, "canvas").ariaLabel = file.name;
    const { score, ms, maps } = await detector.score(picture);
    if (!tile.isConnected) return;
    const mark = document.createElement("i");
    mark.dataset.score = score;
    mark.style.left = `${100 * place(score)}%`;
    $("strip").append(mark);
    tile.mark = mark;
    const map = showMaps(part(tile, ".views"), maps);
    pictures.push({ tile, score, map });
    see(score);
    took(ms);
    tile.dataset.ms = ms;
    showScore(tile, score);
    showNotes(tile, picture);
    part(tile, ".about").textContent = `${picture.sourceWidth} × ${picture.sourceHeight} · ${ms.toFixed(1)} ms`;
  } catch (error) {
    tile.dataset.verdict = "error";
    part(tile, ".verdict").textContent = "not scored";
    part(tile, ".note").hidden = false;
    part(tile, ".note").textContent = error.message;
  }
  showCounts();
  await new Promise((resolve) => setTimeout(resolve)); // lets the page answer between two pictures
}

function drawThumbnail(canvas, { source, sourceWidth, sourceHeight }) {
  const scale = Math.min(1, VIEW_SIDE / Math.max(sourceWidth, sourceHeight));
  canvas.width = Math.max(1, Math.round(sourceWidth * scale));
  canvas.height = Math.max(1, Math.round(sourceHeight * scale));
  canvas.classList.toggle("pixels", Math.max(sourceWidth, sourceHeight) < 200);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  source.close();
}

function clearPictures() {
  $("tiles").replaceChildren();
  $("strip").replaceChildren();
  pictures.length = 0;
  seen = { low: 0, high: 0 };
  $("pictures").hidden = true;
  setThreshold(threshold);
  $("files").focus();
}

// Camera

async function startCamera() {
  const [height, width] = detector.inputSize ?? [];
  const size = width ? { width: { ideal: width }, height: { ideal: height } } : {};
  const wanted = { audio: false, video: { facingMode: { ideal: "environment" }, ...size } };
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia(wanted);
  } catch (error) {
    const why = { NotAllowedError: "The browser was not allowed to use it.", NotFoundError: "No camera was found." };
    $("camera-hint").textContent = why[error.name] ?? error.message;
    return;
  }
  camera = { stream, scores: [], frames: 0, canvas: new OffscreenCanvas(1, 1), spoken: -Infinity };
  $("video").srcObject = stream;
  await $("video").play();
  $("camera").hidden = false;
  $("camera-label").textContent = "Stop camera";
  $("camera-hint").textContent = "live score";
  $("camera").scrollIntoView({ block: "nearest" });
  stream.getVideoTracks()[0].addEventListener("ended", stopCamera);
  watch(camera);
}

function stopCamera() {
  camera?.stream.getTracks().forEach((track) => track.stop());
  camera = null;
  $("video").srcObject = null;
  $("camera").hidden = true;
  $("camera-label").textContent = "Start camera";
}

/** Scores frames as fast as they come and the detector goes, until the camera stops. */
async function watch(mine) {
  const video = $("video");
  while (camera === mine) {
    await nextFrame(video);
    if (camera !== mine || !video.videoWidth) continue;
    try {
      const frame = readPixels(video, video.videoWidth, video.videoHeight, detector.channels, detector.inputSize, mine.canvas);
      const { score, ms, maps } = await detector.score(frame);
      if (camera !== mine) return;
      mine.frames += 1;
      mine.scores.push(score);
      if (mine.scores.length > SPARKS) mine.scores.shift();
      see(score);
      took(ms);
      const before = $("camera").dataset.verdict;
      showScore($("camera"), score);
      showNotes($("camera"), frame);
      showMaps(part($("camera"), ".views"), maps);
      drawSparkline(mine.scores);
      $("camera").dataset.frames = mine.frames;
      part($("camera"), ".about").textContent = `${frame.sourceWidth} × ${frame.sourceHeight} · ${ms.toFixed(1)} ms`;
      speak(mine, before);
    } catch (error) {
      stopCamera();
      $("camera-hint").textContent = error.message;
    }
  }
}

/** Reads a change of verdict aloud, not more often than one can listen to. */
function speak(mine, before) {
  const verdict = $("camera").dataset.verdict;
  const now = performance.now();
  if (verdict === before || now - mine.spoken < QUIET_MS) return;
  mine.spoken = now;
  $("announcer").textContent = `Camera: ${verdict}`;
}

/** Resolves at the video's next frame; a hidden page has none, so the camera rests there. */
function nextFrame(video) {
  if (video.requestVideoFrameCallback) {
    return Promise.race([
      new Promise((resolve) => video.requestVideoFrameCallback(resolve)),
      new Promise((resolve) => setTimeout(resolve, 1000)), // a stopped video has no next frame
    ]);
  }
  return new Promise((resolve) => requestAnimationFrame(resolve));
}

function drawSparkline(scores) {
  const canvas = $("sparkline");
  const { width, height } = canvas;
  const context = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const low = Math.min(threshold, ...scores);
  const range = Math.max(threshold, ...scores) - low || 1;
  const y = (score) => height - 6 - ((score - low) / range) * (height - 12);
  context.clearRect(0, 0, width, height);
  context.setLineDash([6, 6]);
  context.lineWidth = 2;
  context.strokeStyle = style.getPropertyValue("--quiet");
  context.beginPath();
  context.moveTo(0, y(threshold));
  context.lineTo(width, y(threshold));
  context.stroke();
  context.setLineDash([]);
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = style.getPropertyValue("--accent");
  context.beginPath();
  scores.forEach((score, i) => context.lineTo(width - ((scores.length - 1 - i) * width) / (SPARKS - 1), y(score)));
  context.stroke();
}

// Self-test

async function runSelfTest() {
  const line = $("selftest-result");
  $("selftest").disabled = true;
  line.textContent = "Running…";
  let result;
  try {
    result = await selfTest(detector);
    const pixels = result.canvas_exact ? "" : " But this browser changes pixels that a page reads back, so scores of pictures will differ.";
    const verdicts = result.verdicts_equal ? "" : ", and verdicts differ";
    const maps = result.max_map_difference === null ? "" : `, of maps ${result.max_map_difference.toExponential(1)}`;
    line.textContent =
      `${result.passed ? "✓ Passed" : "▲ Failed"}: ${result.cases} pictures, largest relative difference ` +
      `${result.max_relative_difference.toExponential(1)} of ${result.tolerance} allowed${verdicts}${maps}, ` +
      `${result.ms_median.toFixed(1)} ms a picture.${pixels}`;
  } catch (error) {
    result = { passed: false, error: error.message };
    line.textContent = `▲ Failed: ${error.message}`;
  }
  line.dataset.passed = result.passed;
  line.dataset.result = JSON.stringify(result);
  $("selftest").disabled = false;
}

// Beginning

function describe(about) {
  document.title = $("name").textContent = about.name ?? about.detector;
  const taken = about.frame ? `takes ${about.frame[1]} × ${about.frame[0]} pixels` : "takes any size";
  const facts = [
    about.image_channels === 1 ? "grey" : "colour",
    `sees ${about.working_size ? "tiles of " : ""}${about.image_size} × ${about.image_size}`,
    ...(about.working_size ? [`of photos at ${about.working_size[1]} × ${about.working_size[0]}`] : []),
    taken,
    about.precision,
    ...(about.file_sha256 ? [`file ${about.file_sha256.slice(0, 8)}`] : []),
  ];
  $("facts").replaceChildren(...facts.map((fact) => Object.assign(document.createElement("li"), { textContent: fact })));
  $("rule").textContent = `The file's own: ${short(about.threshold)}${about.threshold_rule ? `, ${about.threshold_rule}` : ""}.`;
  $("legend").hidden = detector.mapUnit !== "score";
  $("versions").textContent = `ONNX Runtime Web ${RUNTIME_VERSION}.`;
}

function listen() {
  $("threshold").addEventListener("input", (event) => setThreshold(event.target.valueAsNumber));
  $("threshold").addEventListener("change", () => ($("announcer").textContent = showCounts()));
  $("threshold-number").addEventListener("input", ({ target }) => {
    if (Number.isFinite(target.valueAsNumber)) setThreshold(target.valueAsNumber, { keepNumber: true });
  });
  $("threshold-number").addEventListener("blur", () => setThreshold(threshold));
  $("reset").addEventListener("click", () => setThreshold(detector.threshold));
  $("files").addEventListener("change", ({ target }) => {
    addFiles([...target.files]);
    target.value = ""; // so that the same file can be chosen again
  });
  $("clear").addEventListener("click", clearPictures);
  $("camera-button").addEventListener("click", () => (camera ? stopCamera() : startCamera()));
  $("selftest").addEventListener("click", runSelfTest);
  $("show-map").addEventListener("change", ({ target }) => document.body.classList.toggle("no-overlay", !target.checked));
  addEventListener("paste", ({ clipboardData }) => addFiles([...(clipboardData?.files ?? [])]));
  addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dragging");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    addFiles([...event.dataTransfer.files]);
  });
}

async function begin() {
  try {
    detector = await Detector.load();
  } catch (error) {
    document.documentElement.dataset.state = "failed";
    $("status").textContent = `The detector can't be loaded: ${error.message}`;
    $("selftest-result").dataset.result = JSON.stringify({ passed: false, error: error.message });
    return;
  }
  describe(detector.about);
  setThreshold(detector.threshold);
  listen();
  for (const id of ["threshold", "threshold-number", "files", "selftest"]) $(id).disabled = false;
  $("camera-button").disabled = !navigator.mediaDevices?.getUserMedia;
  if ($("camera-button").disabled) $("camera-hint").textContent = "needs https or localhost";
  document.documentElement.dataset.state = "ready";
  $("status").textContent = "Ready";
  if (new URLSearchParams(location.search).has("selftest")) await runSelfTest();
}

begin();
