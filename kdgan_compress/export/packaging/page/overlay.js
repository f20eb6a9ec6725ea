// Anomaly maps in colours. Independent of the page.

export const FIRST_VISIBLE = 0.75; // map divided by the threshold: transparent up to here,
export const FULL = 1.5; // strongest colour from here, as in the package's pictures
const MAX_OPACITY = 0.6;
const CONTOUR = [255, 255, 255, 255];
const HEAT = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]]; // matplotlib's inferno

/** The colour [r, g, b] of a value from 0 to 1. */
export function heat(value) {
  const at = Math.min(1, Math.max(0, value)) * (HEAT.length - 1);
  const low = Math.min(Math.floor(at), HEAT.length - 2);
  return HEAT[low].map((from, c) => from + (HEAT[low + 1][c] - from) * (at - low));
}

/**
 * Draws a map in units of the score over a whole canvas: purple just below the threshold to yellow, and a white line
 * around what is above it.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {{values: ArrayLike<number>, dims: number[]}} map
 * @param {number} threshold
 */
export function drawOverlay(canvas, { values, dims: [height, width] }, threshold) {
  const relative = relativeTo(values, threshold);
  const image = new ImageData(width, height);
  for (let pixel = 0; pixel < relative.length; pixel++) {
    const share = Math.min(1, Math.max(0, (relative[pixel] - FIRST_VISIBLE) / (FULL - FIRST_VISIBLE)));
    const edge = relative[pixel] > 1 && isEdge(relative, pixel, width);
    image.data.set(edge ? CONTOUR : [...heat(share), 255 * MAX_OPACITY * Math.sqrt(share)], 4 * pixel);
  }
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  canvas.dataset.above = relative.some((value) => value > 1);
}

/** The map on a scale on which 1 is the threshold; one that is not positive is no divisor. */
function relativeTo(values, threshold) {
  if (threshold > 0) return Float32Array.from(values, (value) => value / threshold);
  const largest = values.reduce((most, value) => Math.max(most, Math.abs(value - threshold)), 0) || 1;
  return Float32Array.from(values, (value) => 1 + (value - threshold) / largest);
}

/** Whether a pixel has a neighbour at or below the threshold. */
function isEdge(relative, pixel, width) {
  const column = pixel % width;
  return (
    (column > 0 && relative[pixel - 1] <= 1) ||
    (column < width - 1 && relative[pixel + 1] <= 1) ||
    relative[pixel - width] <= 1 ||
    relative[pixel + width] <= 1
  );
}
