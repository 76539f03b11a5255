// What lies above the picture: drawn by the server as pictures, laid on a canvas that fills its place as the video does, so
// that it stands where it would be burned in. Only the ticker's words move here.

const place = (path) => new URL(path, document.baseURI);
const AGAIN = 3000; // ms until a picture that did not come is asked for again

export class Overlay {
  constructor(canvas) {
    this.canvas = canvas;
    this.number = 0; // of the pictures asked for last
    this.running = false;
    window.addEventListener("resize", () => this.news && this.load());
  }

  told(news) {
    this.news = news;
    this.load();
  }

  async load() {
    const { canvas, news } = this;
    const number = ++this.number;
    if (!news.shown) {
      canvas.hidden = true;
      this.keep(null, null);
      return;
    }
    const height = Math.max(1, Math.round((canvas.parentElement.clientHeight || innerHeight) * (window.devicePixelRatio || 1)));
    try {
      const [still, strip] = await Promise.all([
        picture("overlay.png", height, news.version),
        news.ticker ? picture("overlay-ticker.png", height, news.version) : null,
      ]);
      if (number !== this.number) {
        release(still, strip); // there are newer ones
        return;
      }
      this.keep(still, strip);
      canvas.width = still.width;
      canvas.height = still.height;
      canvas.hidden = false;
      this.draw();
      if (strip && !this.running) this.run();
    } catch (error) {
      setTimeout(() => number === this.number && this.load(), AGAIN);
    }
  }

  keep(still, strip) {
    release(this.still, this.strip);
    Object.assign(this, { still, strip });
  }

  run() {
    this.running = Boolean(this.strip);
    if (!this.running) return;
    this.draw();
    requestAnimationFrame(() => this.run());
  }

  draw() {
    const { canvas, still, strip, news } = this;
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, canvas.width, canvas.height);
    pen.drawImage(still, 0, 0);
    if (!strip) return;
    const gone = ((Date.now() / 1000) * news.ticker.speed * canvas.width) % (canvas.width + strip.width);
    pen.drawImage(strip, canvas.width - gone, news.ticker.top * canvas.height);
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
    image.onload = () => done(image);
    image.onerror = failed;
    image.src = address;
  });
}

function release(...pictures) {
  for (const one of pictures) if (one && one.close) one.close();
}
