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
      this.still = this.strip = null;
      return;
    }
    const height = Math.max(1, Math.round((canvas.parentElement.clientHeight || innerHeight) * (window.devicePixelRatio || 1)));
    try {
      const [still, strip] = await Promise.all([
        picture("overlay.png", height, news.version),
        news.ticker ? picture("overlay-ticker.png", height, news.version) : null,
      ]);
      if (number !== this.number) return; // there are newer ones
      Object.assign(this, { still, strip });
      canvas.width = still.naturalWidth;
      canvas.height = still.naturalHeight;
      canvas.hidden = false;
      this.draw();
      if (strip && !this.running) this.run();
    } catch (error) {
      setTimeout(() => number === this.number && this.load(), AGAIN);
    }
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
    const gone = ((Date.now() / 1000) * news.ticker.speed * canvas.width) % (canvas.width + strip.naturalWidth);
    pen.drawImage(strip, canvas.width - gone, news.ticker.top * canvas.height);
  }
}

function picture(path, height, version) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = failed;
    const address = place(path);
    address.search = new URLSearchParams({ height, version });
    image.src = address;
  });
}
