// What shows the stream where there is no Media Source Extension or no WebSocket: the browser's own HLS player, else Motion JPEG.
// The server does not judge such a screen, since nobody can tell what it shows.

const STILL = 20000; // ms without progress after which the browser's own player is given the stream again
const AGAIN = 3000; // ms until what failed is tried again
const ASK = 30000; // ms between questions for the screen's view, which also say that it is there

const place = (path) => new URL(path, document.baseURI);

export function otherWays(video) {
  let moved = performance.now();
  let last = -1;
  let image = null;
  const play = () => video.play().catch(() => {});
  const load = () => {
    moved = performance.now();
    video.src = place("hls/live.m3u8");
    play();
  };
  video.addEventListener("error", () => {
    if (video.canPlayType("application/vnd.apple.mpegurl")) setTimeout(load, AGAIN);
    else if (!image) image = pictures(video);
  });
  setInterval(() => {
    const now = performance.now();
    if (video.currentTime !== last) moved = now;
    last = video.currentTime;
    if (image) return;
    if (video.paused) play();
    if (now - moved > STILL) load();
  }, 1000);
  load();
}

function pictures(video) {
  const image = new Image();
  image.alt = "";
  const load = () => (image.src = `${place("video.mjpeg")}?${Date.now()}`);
  image.addEventListener("error", () => setTimeout(load, AGAIN));
  load();
  video.after(image);
  return image;
}

// How the screen shows the picture, which a connection would have said.
export function askView(screen, frame) {
  const ask = () => {
    const asked = fetch(place(`api/screens/${encodeURIComponent(screen)}/view`), { cache: "no-store" });
    asked.then((answer) => answer.json()).then(frame).catch(() => {});
  };
  ask();
  setInterval(ask, ASK);
}
