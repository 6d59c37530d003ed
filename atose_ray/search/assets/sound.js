// A few seconds of sound: a player, and a spectrogram that is drawn here from the samples.

const FFT_SIZE = 512;
const BANDS = 96; // rows of the picture, evenly spaced in log frequency
const COLUMNS = 260;
const LOWEST_HZ = 60;
const FLOOR_DB = 70; // below the loudest cell

// Samples in [-1, 1] and the rate of a mono 16-bit WAV in base64.
function samplesOf(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const words = new DataView(bytes.buffer);
  const samples = new Float32Array((bytes.length - 44) >> 1);
  for (let i = 0; i < samples.length; i += 1) samples[i] = words.getInt16(44 + 2 * i, true) / 32768;
  return { rate: words.getUint32(24, true), samples };
}

const HANN = Float64Array.from({ length: FFT_SIZE }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * (i + 0.5)) / FFT_SIZE));
const COS = Float64Array.from({ length: FFT_SIZE / 2 }, (_, i) => Math.cos((2 * Math.PI * i) / FFT_SIZE));
const SIN = Float64Array.from({ length: FFT_SIZE / 2 }, (_, i) => -Math.sin((2 * Math.PI * i) / FFT_SIZE));

// In place, radix 2: re and im of FFT_SIZE numbers.
function fft(re, im) {
  for (let i = 1, j = 0; i < FFT_SIZE; i += 1) {
    let bit = FFT_SIZE >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) {
      const [x, y] = [re[i], im[i]];
      re[i] = re[j];
      im[i] = im[j];
      re[j] = x;
      im[j] = y;
    }
  }
  for (let half = 1; half < FFT_SIZE; half <<= 1) {
    for (let first = 0; first < FFT_SIZE; first += 2 * half) {
      for (let k = 0; k < half; k += 1) {
        const turn = (k * FFT_SIZE) / (2 * half);
        const i = first + k;
        const j = i + half;
        const x = re[j] * COS[turn] - im[j] * SIN[turn];
        const y = re[j] * SIN[turn] + im[j] * COS[turn];
        re[j] = re[i] - x;
        im[j] = im[i] - y;
        re[i] += x;
        im[i] += y;
      }
    }
  }
}

// Decibels below the loudest cell, column after column of BANDS, from LOWEST_HZ to half the rate.
function spectrogram(samples, rate) {
  const columns = Math.max(1, Math.min(COLUMNS, Math.floor(samples.length / 64)));
  const bins = bandBins(rate);
  const [re, im, cells] = [new Float64Array(FFT_SIZE), new Float64Array(FFT_SIZE), new Float32Array(columns * BANDS)];
  let most = 1e-12;
  for (let column = 0; column < columns; column += 1) {
    const first = Math.round(((column + 0.5) * samples.length) / columns) - FFT_SIZE / 2;
    for (let i = 0; i < FFT_SIZE; i += 1) re[i] = (samples[first + i] || 0) * HANN[i];
    im.fill(0);
    fft(re, im);
    for (let band = 0; band < BANDS; band += 1) {
      const power = bandPower(re, im, bins[band], bins[band + 1]);
      cells[column * BANDS + band] = power;
      most = Math.max(most, power);
    }
  }
  return { columns, cells: cells.map((power) => Math.max(-FLOOR_DB, 10 * Math.log10(Math.max(power, 1e-14) / most))) };
}

// The edges of the bands, in bins of the FFT.
const bandBins = (rate) => Array.from({ length: BANDS + 1 }, (_, band) => (LOWEST_HZ * (rate / 2 / LOWEST_HZ) ** (band / BANDS) * FFT_SIZE) / rate);

function bandPower(re, im, from, to) {
  if (to - from < 1) { // a band narrower than a bin: between its two neighbours
    const low = Math.floor((from + to) / 2);
    const high = Math.min(low + 1, FFT_SIZE / 2);
    const share = (from + to) / 2 - low;
    return (re[low] ** 2 + im[low] ** 2) * (1 - share) + (re[high] ** 2 + im[high] ** 2) * share;
  }
  let most = 0;
  for (let i = Math.ceil(from); i <= to; i += 1) most = Math.max(most, re[i] * re[i] + im[i] * im[i]);
  return most;
}

function pictureOf(samples, rate) {
  const { columns, cells } = spectrogram(samples, rate);
  const canvas = h("canvas", { width: columns, height: BANDS });
  const pen = canvas.getContext("2d");
  const image = pen.createImageData(columns, BANDS);
  const colors = Array.from({ length: 65 }, (_, i) => rampColor(i / 64).match(/\d+/g).map(Number));
  for (let column = 0; column < columns; column += 1) {
    for (let band = 0; band < BANDS; band += 1) {
      const level = Math.round((1 + cells[column * BANDS + band] / FLOOR_DB) * 64);
      image.data.set([...colors[level], level ? 255 : 0], 4 * ((BANDS - 1 - band) * columns + column));
    }
  }
  pen.putImageData(image, 0, 0);
  return canvas.toDataURL();
}

function paintSpectrogram(host, text, words) {
  const { rate, samples } = samplesOf(text);
  const plot = frame(host, { height: 150, minWidth: 200, label: `Spectrogram of ${words}`, margin: { top: 6, right: 4, bottom: 20, left: 44 } });
  const [width, height] = [plot.right - plot.left, plot.bottom - plot.top];
  plot.svg.append(s("image", { href: pictureOf(samples, rate), x: plot.left, y: plot.top, width, height, preserveAspectRatio: "none" }));
  for (const hz of [100, 300, 1000, 3000, 10000].filter((one) => one < rate / 2)) {
    const y = plot.bottom - (height * Math.log(hz / LOWEST_HZ)) / Math.log(rate / 2 / LOWEST_HZ);
    plot.svg.append(s("line", { class: "axis", x1: plot.left - 4, x2: plot.left, y1: y, y2: y }), s("text", { class: "small", x: plot.left - 6, y: y + 4, "text-anchor": "end" }, hz < 1000 ? `${hz} Hz` : `${hz / 1000} kHz`));
  }
  const seconds = samples.length / rate;
  const x = linear(0, Math.max(seconds, 1e-3), plot.left, plot.right);
  for (const tick of x.ticks(4)) plot.svg.append(s("text", { class: "small", x: x(tick), y: plot.bottom + 14, "text-anchor": tick > 0.9 * seconds ? "end" : "middle" }, `${number(tick)} s`));
  return { plot, x, seconds };
}

// A player under its spectrogram: a line runs along while it plays, and a click goes there.
function player(text, words) {
  const picture = h("div", { class: "plot picture" });
  const audio = h("audio", { controls: true, preload: "none", src: `data:audio/wav;base64,${text}`, "aria-label": words });
  const draw = () => {
    const drawn = paintSpectrogram(picture, text, words);
    const line = s("line", { class: "playhead", y1: drawn.plot.top, y2: drawn.plot.bottom, visibility: "hidden" });
    drawn.plot.svg.append(line);
    const move = () => {
      element(line, { x1: drawn.x(audio.currentTime), x2: drawn.x(audio.currentTime), visibility: "visible" }, []);
      if (!audio.paused) requestAnimationFrame(move);
    };
    audio.onplay = move;
    audio.onseeked = move;
    drawn.plot.svg.onclick = (event) => {
      const [at] = placeIn(drawn.plot, event);
      audio.currentTime = Math.min(Math.max(0, ((at - drawn.plot.left) / (drawn.plot.right - drawn.plot.left)) * drawn.seconds), drawn.seconds);
      audio.play();
    };
  };
  audio.addEventListener("play", () => document.querySelectorAll("audio").forEach((other) => { if (other !== audio) other.pause(); }));
  whenSeen(picture, draw);
  return h("div", { class: "player" }, picture, audio);
}

// ---- what costs time to draw waits until it comes near the window; print draws all

const waitingPictures = new Map();
const seer = new IntersectionObserver((entries) => entries.filter((one) => one.isIntersecting).forEach((one) => drawSeen(one.target)), { rootMargin: "600px" });

function whenSeen(node, draw) {
  waitingPictures.set(node, draw);
  seer.observe(node);
}

function drawSeen(node) {
  const draw = waitingPictures.get(node);
  waitingPictures.delete(node);
  seer.unobserve(node);
  if (draw && node.isConnected) attempt("spectrogram", draw);
}

const drawAllPictures = () => [...waitingPictures.keys()].forEach(drawSeen);
