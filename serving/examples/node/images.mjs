// Images as Vigil decodes them with Pillow: upright, on an opaque background, resized with Pillow's antialiased bicubic filter.
// One difference: Vigil lets libjpeg decode large JPEGs at 1/2, 1/4 or 1/8, which sharp cannot do; here blocks of pixels are
// averaged, which differs by a few grey levels (docs/bundle-without-vigil.md#large-jpegs).
import sharp from "sharp";

const PRECISION_BITS = 22; // of Pillow's fixed-point coefficients for 8-bit images

/** Decodes one image to the pixels that the image encoder takes: Uint8Array [3, size, size]. */
export async function pixelsOf(data, spec) {
  const options = { ignoreIcc: true, failOn: "warning", limitInputPixels: false };
  const { width, height, format, orientation } = await sharp(data, options).metadata();
  if (width * height > spec.max_pixels) throw new Error(`an image of ${width} x ${height} pixels, more than max_pixels ${spec.max_pixels}`);
  const { data: raw, info } = await sharp(data, options).raw().toBuffer({ resolveWithObject: true });
  const image = reduced(opaque(raw, info, spec.background), format === "jpeg" ? jpegScale(width, height, spec) : 1);
  return fit(upright(image, orientation), spec);
}

/** The scale 1 / s at which Vigil decodes a JPEG: the result still has twice the wanted size. */
function jpegScale(width, height, spec) {
  const scale = (2 * spec.size) / (spec.fit === "pad" ? Math.max(width, height) : Math.min(width, height));
  if (scale >= 1) return 1;
  const wholes = [width, height].map((length) => Math.floor(length / Math.max(1, roundHalfEven(length * scale))));
  return [8, 4, 2, 1].find((s) => Math.min(...wholes) >= s);
}

/** Averages blocks of s by s pixels; those at the right and lower edge may be smaller. */
function reduced({ rgb, width, height }, s) {
  if (s === 1) return { rgb, width, height };
  const [w, h] = [Math.ceil(width / s), Math.ceil(height / s)];
  const result = new Uint8Array(3 * w * h);
  for (let place = 0; place < result.length; place++) {
    const [x, y, c] = [Math.floor(place / 3) % w, Math.floor(place / (3 * w)), place % 3];
    const [right, lower] = [Math.min(width, (x + 1) * s), Math.min(height, (y + 1) * s)];
    let sum = 0;
    for (let row = y * s; row < lower; row++) for (let column = x * s; column < right; column++) sum += rgb[3 * (row * width + column) + c];
    result[place] = Math.round(sum / ((right - x * s) * (lower - y * s)));
  }
  return { rgb: result, width: w, height: h };
}

/** RGB on the background: greys are tripled, transparent colours are mixed with it. */
function opaque(raw, { width, height, channels }, background) {
  const rgb = new Uint8Array(3 * width * height);
  const colours = channels < 3 ? 1 : 3;
  for (let pixel = 0; pixel < width * height; pixel++) {
    for (let c = 0; c < 3; c++) {
      const value = raw[pixel * channels + (colours === 1 ? 0 : c)];
      const alpha = channels > colours ? raw[pixel * channels + colours] : 255;
      rgb[pixel * 3 + c] = Math.round((value * alpha + background * (255 - alpha)) / 255);
    }
  }
  return { rgb, width, height };
}

/** Turns an image upright by its EXIF orientation. */
function upright({ rgb, width, height }, orientation = 1) {
  if (orientation < 2 || orientation > 8) return { rgb, width, height };
  const [w, h] = orientation >= 5 ? [height, width] : [width, height];
  const source = {
    2: (x, y) => [width - 1 - x, y],
    3: (x, y) => [width - 1 - x, height - 1 - y],
    4: (x, y) => [x, height - 1 - y],
    5: (x, y) => [y, x],
    6: (x, y) => [y, height - 1 - x],
    7: (x, y) => [width - 1 - y, height - 1 - x],
    8: (x, y) => [width - 1 - y, x],
  }[orientation];
  const turned = new Uint8Array(rgb.length);
  for (let y = 0; y < h; y++) {
    for (let x = 0; x < w; x++) {
      const [fromX, fromY] = source(x, y);
      turned.set(rgb.subarray(3 * (fromY * width + fromX), 3 * (fromY * width + fromX) + 3), 3 * (y * w + x));
    }
  }
  return { rgb: turned, width: w, height: h };
}

/** Resizes to [3, size, size]: squashed, the middle square, or padded with the background. */
function fit(image, { size, fit, background }) {
  const { width, height } = image;
  const planes = new Uint8Array(3 * size * size);
  let part = [0, 0, width, height];
  let [w, h] = [size, size];
  if (fit === "crop") {
    const side = Math.min(width, height);
    part = [(width - side) / 2, (height - side) / 2, (width + side) / 2, (height + side) / 2];
  } else if (fit === "pad") {
    const scale = size / Math.max(width, height);
    [w, h] = [width, height].map((length) => Math.max(1, roundHalfEven(length * scale)));
    planes.fill(background);
  }
  const [left, top] = [Math.floor((size - w) / 2), Math.floor((size - h) / 2)];
  // Two passes, rounded to 8 bits in between; Pillow starts with the one that leaves less for the other.
  const [x, y] = [{ from: part[0], to: part[2], size: w }, { from: part[1], to: part[3], size: h }];
  const downFirst = height - h > 2 * Math.max(0, width - w);
  const once = downFirst
    ? resample(image.rgb, { lines: width, stride: 3, length: height, step: 3 * width }, y)
    : resample(image.rgb, { lines: height, stride: 3 * width, length: width, step: 3 }, x);
  const twice = downFirst
    ? resample(once, { lines: h, stride: 3, length: width, step: 3 * h }, x)
    : resample(once, { lines: w, stride: 3, length: height, step: 3 * w }, y);
  for (let place = 0; place < w * h; place++) {
    const [row, column] = downFirst ? [Math.floor(place / w), place % w] : [place % h, Math.floor(place / h)];
    for (let c = 0; c < 3; c++) planes[(c * size + top + row) * size + left + column] = twice[3 * place + c];
  }
  return planes;
}

/** Resamples every line of `length` pixels, `step` apart, to `size` pixels of its part [from, to); returns [lines, size, 3]. */
function resample(source, { lines, stride, length, step }, { from, to, size }) {
  const scale = (to - from) / size;
  const filterScale = Math.max(scale, 1);
  const support = 2 * filterScale;
  const result = new Uint8Array(lines * size * 3);
  for (let target = 0; target < size; target++) {
    const centre = from + (target + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(length, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: last - first }, (_, i) => bicubic((i + first - centre + 0.5) * (1 / filterScale)));
    const total = weights.reduce((sum, weight) => sum + weight, 0);
    const fixed = weights.map((weight) => {
      const scaled = (weight / total) * 2 ** PRECISION_BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    for (let line = 0; line < lines; line++) {
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (PRECISION_BITS - 1);
        for (let i = 0; i < fixed.length; i++) sum += source[line * stride + (first + i) * step + c] * fixed[i];
        result[(line * size + target) * 3 + c] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION_BITS)));
      }
    }
  }
  return result;
}

function bicubic(x) {
  const [a, d] = [-0.5, Math.abs(x)];
  if (d < 1) return ((a + 2) * d - (a + 3)) * d * d + 1;
  return d < 2 ? (((d - 5) * d + 8) * d - 4) * a : 0;
}

function roundHalfEven(x) {
  const down = Math.floor(x);
  return x - down === 0.5 ? down + (down % 2) : Math.round(x);
}
