// Waveform and spectrogram of a whole sound, drawn here from what the browser decodes. Magnitudes in dB over a mel scale.

const FFT = 1024, HEIGHT_DB = 80;

function magnitudes(samples, at, window, re, im) { // |FFT| of FFT samples from `at` on, radix 2 in place
  for (let i = 0; i < FFT; i++) { re[i] = (samples[at + i] || 0) * window[i]; im[i] = 0; }
  for (let i = 1, j = 0; i < FFT; i++) {
    let bit = FFT >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) { const kept = re[i]; re[i] = re[j]; re[j] = kept; }
  }
  for (let size = 2; size <= FFT; size <<= 1) {
    const turn = (-2 * Math.PI) / size, half = size >> 1;
    for (let k = 0; k < half; k++) {
      const c = Math.cos(turn * k), d = Math.sin(turn * k);
      for (let i = k; i < FFT; i += size) {
        const a = re[i + half] * c - im[i + half] * d, b = re[i + half] * d + im[i + half] * c;
        re[i + half] = re[i] - a; im[i + half] = im[i] - b; re[i] += a; im[i] += b;
      }
    }
  }
  for (let i = 0; i < FFT / 2; i++) re[i] = Math.hypot(re[i], im[i]);
  return re;
}

function soundPicture(buffer, media) { // AudioBuffer -> { element, draw }
  const samples = buffer.getChannelData(0), rate = buffer.sampleRate, mel = (hz) => 2595 * Math.log10(1 + hz / 700);
  const aria = (what) => ({ role: "img", "aria-label": `${what} of the sound; a click moves the sound there` });
  const wave = h("canvas", aria("Waveform")), spectrum = h("canvas", aria("Spectrogram, up to " + Math.round(rate / 2000) + " kHz"));
  const element = h("div", {}, wave, spectrum), pictures = new Map();
  const paint = (canvas, height, fresh, make) => {
    const pen = fit(canvas, height), { width } = canvas, kept = pictures.get(canvas);
    if (fresh || !kept || kept.width !== width) pictures.set(canvas, make(pen, width, canvas.height));
    pen.putImageData(pictures.get(canvas), 0, 0);
    drawCursor(pen, canvas, media.currentTime / buffer.duration);
  };
  function waveform(pen, width, height) {
    pen.clearRect(0, 0, width, height);
    pen.fillStyle = css("--accent");
    for (let x = 0; x < width; x++) {
      const first = Math.floor((x / width) * samples.length), end = Math.max(first + 1, Math.floor(((x + 1) / width) * samples.length));
      let low = 0, high = 0;
      for (let i = first; i < end; i += Math.max(1, (end - first) >> 9)) low = Math.min(low, samples[i]), high = Math.max(high, samples[i]);
      pen.fillRect(x, ((1 - high) / 2) * height, 1, Math.max(1, ((high - low) / 2) * height));
    }
    return pen.getImageData(0, 0, width, height);
  }
  function spectrogram(pen, width, height) {
    const picture = pen.createImageData(width, height), window = Float32Array.from({ length: FFT }, (_, i) => 0.5 - 0.5 * Math.cos((2 * Math.PI * i) / FFT));
    const re = new Float32Array(FFT), im = new Float32Array(FFT), columns = [], paper = rgb(css("--grid")), ink = rgb(css("--ink"));
    const bins = Array.from({ length: height }, (_, y) => { const m = (1 - y / height) * mel(rate / 2); return (700 * (10 ** (m / 2595) - 1) / (rate / 2)) * (FFT / 2); });
    let peak = 1e-9;
    for (let x = 0; x < width; x++) {
      const column = Float32Array.from(magnitudes(samples, Math.max(0, Math.floor(((x + 0.5) / width) * samples.length - FFT / 2)), window, re, im).subarray(0, FFT / 2));
      for (const value of column) peak = Math.max(peak, value);
      columns.push(column);
    }
    columns.forEach((column, x) => bins.forEach((bin, y) => {
      const share = Math.max(0, 1 + (20 * Math.log10(Math.max(column[Math.min(FFT / 2 - 1, Math.round(bin))], 1e-12) / peak)) / HEIGHT_DB), at = 4 * (y * width + x);
      for (let c = 0; c < 3; c++) picture.data[at + c] = paper[c] + (ink[c] - paper[c]) * share;
      picture.data[at + 3] = 255;
    }));
    return picture;
  }
  function draw(fresh) {
    if (!element.isConnected) return;
    paint(wave, 64, fresh, waveform); paint(spectrum, 128, fresh, spectrogram);
  }
  for (const canvas of [wave, spectrum]) canvas.addEventListener("click", (event) => { media.currentTime = (event.offsetX / canvas.clientWidth) * buffer.duration; draw(); });
  new ResizeObserver(() => draw()).observe(element);
  return { element, draw };
}
