// What lies above the picture: drawn by the server as pictures, laid on a canvas that fills its place as the video does, so
// that it stands where it would be burned in. Only the ticker's words move here. A message is for reading, whatever shape the
// screen has and whichever part of a wall it is: it fills the stage, whole.

const place = (path) => new URL(path, document.baseURI);
const AGAIN = 3000; // ms until a picture that did not come is asked for again
const TALLEST = 2160; // that the server draws; a part of a wall is a window on a picture that may be any height
const HEARD = 5; // times of the server that are remembered
const clock = () => performance.now() / 1000; // which nobody sets

export class Overlay {
  constructor(canvas, stage = null) {
    Object.assign(this, { canvas, stage, home: canvas.parentElement });
    this.number = 0; // of what is to be shown
    this.heard = []; // seconds that the server's clock was ahead of this one, by its last messages
    this.loading = this.running = false;
    window.addEventListener("resize", () => this.news && this.load());
  }

  told(news) {
    this.news = news;
    // The server's clock moves the ticker, so that screens of a wall agree. What came fastest knows it best.
    const ahead = news.now - clock();
    this.heard = [...this.heard.filter((one) => Math.abs(one - ahead) < 1), ahead].slice(-HEARD);
    this.load();
  }

  // One at a time, and the newest after it: a clock of seconds must not keep a slow screen from ever showing one.
  async load() {
    this.number++;
    if (this.loading) return;
    this.loading = true;
    for (let shown = 0; shown !== this.number; ) {
      shown = this.number;
      await this.show(this.news);
    }
    this.loading = false;
  }

  async show(news) {
    if (!news.shown) {
      this.canvas.hidden = true;
      this.keep(null, null, null);
      return;
    }
    const ground = this.home.clientHeight || innerHeight;
    const height = Math.min(TALLEST, Math.max(1, Math.round(ground * (window.devicePixelRatio || 1))));
    const words = news.ticker && `${news.ticker.version} ${height}`;
    try {
      const [still, strip] = await Promise.all([
        picture("overlay.png", height, news.version),
        news.ticker ? (words === this.words ? this.strip : picture("overlay-ticker.png", height, words)) : null,
      ]);
      this.keep(still, strip, news.ticker, words);
      this.lie(news.message);
      this.canvas.width = still.width;
      this.canvas.height = still.height;
      this.canvas.hidden = false;
      this.draw();
      if (strip && !this.running) this.run();
    } catch (error) {
      clearTimeout(this.later); // one, however many pictures do not come
      this.later = setTimeout(() => this.load(), AGAIN);
    }
  }

  keep(still, strip, ticker, words = null) {
    release(this.still, strip === this.strip ? null : this.strip);
    Object.assign(this, { still, strip, ticker, words });
  }

  lie(message) {
    const { canvas, stage, home } = this;
    const where = message && stage ? stage : home;
    if (canvas.parentElement !== where) where.appendChild(canvas);
    canvas.style.background = message ? message.ground : "";
  }

  run() {
    this.running = Boolean(this.strip);
    if (!this.running) return;
    this.draw();
    requestAnimationFrame(() => this.run());
  }

  draw() {
    const { canvas, still, strip, ticker } = this;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(still, 0, 0);
    if (!strip) return;
    const seconds = clock() + Math.max(...this.heard);
    const gone = ((seconds * ticker.speed) % (1 + ticker.width)) * canvas.width;
    pen.drawImage(strip, canvas.width - gone, ticker.top * canvas.height);
  }
}

// A clock of seconds is a new picture every second. An <img> of each would stay in the browser's cache of decoded pictures, at
// 4K 33 MB of them, until it thinks of collecting; a bitmap goes when it is told to.
async function picture(path, height, version) {
  const address = place(path);
  address.search = new URLSearchParams({ height, version });
  if (!window.createImageBitmap) return element(address);
  const answer = await fetch(address, { cache: "no-store" });
  if (!answer.ok) throw new Error(answer.status);
  return createImageBitmap(await answer.blob());
}

function element(address) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.crossOrigin = "anonymous"; // a sandboxed frame has an origin of its own
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = address;
  });
}

function release(...pictures) {
  for (const one of pictures) if (one && one.close) one.close();
}
