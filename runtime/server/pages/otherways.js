// What shows the stream where there is no Media Source Extension or no WebSocket: the browser's own HLS player, else Motion JPEG.
// The server does not judge such a screen, since nobody can tell what it shows.

const STILL = 20000; // ms without progress after which the browser's own player is given the stream again
const TRIES = 3; // of that player with a stream that is there, after which Motion JPEG takes its place
const AGAIN = 3000; // ms until what failed is tried again
const LATE = 5000; // ms for an answer
const ASK = 10000; // ms between questions for the screen's view, which also say that it is there

const place = (path) => new URL(path, document.baseURI);

// An answer that is none within LATE is given up: a connection to a server that has lost its power says nothing for minutes.
export async function asked(path) {
  const stop = window.AbortController ? new AbortController() : null;
  const late = setTimeout(() => stop && stop.abort(), LATE);
  try {
    const answer = await fetch(place(path), { cache: "no-store", signal: stop ? stop.signal : undefined });
    if (!answer.ok) throw new Error(answer.status);
    return answer;
  } finally {
    clearTimeout(late);
  }
}

// screen: its name; null: a preview, which is none.
export function otherWays(video, screen, frame) {
  let moved = performance.now();
  let last = -1;
  let tries = 0;
  let image = null;
  const instead = () => (image = image || pictures(video));
  // Some let nothing play that nobody has touched, as an iPhone that saves power.
  const play = () => video.play().catch((error) => error.name === "NotAllowedError" && instead());
  let looking = false;
  const load = async () => {
    if (looking || image) return;
    looking = true;
    const there = await asked("hls/live.m3u8").then(() => true, () => false);
    looking = false;
    moved = performance.now();
    if (there && ++tries > TRIES) instead();
    if (image) return;
    video.src = place("hls/live.m3u8");
    play();
  };
  video.addEventListener("error", () => {
    if (!video.canPlayType("application/vnd.apple.mpegurl")) instead();
    else if (!image) setTimeout(load, AGAIN);
  });
  setInterval(() => {
    if (image) return;
    const now = performance.now();
    if (video.currentTime !== last) moved = now;
    if (last >= 0 && video.currentTime > last) tries = 0;
    last = video.currentTime;
    if (video.paused) play();
    if (now - moved > STILL) load();
  }, 1000);
  load();
  if (screen !== null) askView(screen, frame, () => image && image.load());
}

function pictures(video) {
  const image = new Image();
  image.alt = "";
  image.load = () => (image.src = `${place("video.mjpeg")}?${Date.now()}`);
  image.addEventListener("error", () => setTimeout(image.load, AGAIN));
  image.load();
  video.after(image);
  return image;
}

// How the screen shows the picture, which a connection would have said. A picture that comes from a server that has gone
// without a word never fails: it is asked for again when the server is back, or is another one.
function askView(screen, frame, again) {
  let life = null;
  const address = `api/screens/${encodeURIComponent(screen)}/view`;
  const ask = () =>
    asked(address)
      .then((answer) => answer.json())
      .then((view) => {
        if (life !== null && life !== view.life) again();
        life = view.life;
        if (frame) frame(view);
      })
      .catch(() => (life = life === null ? null : "lost"));
  ask();
  setInterval(ask, ASK);
}
