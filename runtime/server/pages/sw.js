// Keeps the player's own files, so that the page opens while the server is away; the newest ones win when it is there.
// Addresses are relative: the server may stand behind a proxy below a path.
const CACHE = "everframe-12";
const HOME = new URL("./", self.location).pathname;
const FILES = ["", "static/style.css", "static/screen.js", "static/overlay.js", "static/otherways.js", "static/webrtc.js", "static/player.js"].map((file) => HOME + file);

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(CACHE).then((cache) => cache.addAll(FILES)).then(() => self.skipWaiting()));
});
self.addEventListener("activate", (event) => {
  const old = (names) => Promise.all(names.filter((name) => name !== CACHE).map((name) => caches.delete(name)));
  event.waitUntil(caches.keys().then(old).then(() => self.clients.claim()));
});
self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !FILES.includes(url.pathname)) return;
  event.respondWith(
    fetch(event.request)
      .then((answer) => {
        if (answer.ok) {
          const copy = answer.clone();
          caches.open(CACHE).then((cache) => cache.put(url.pathname, copy));
        }
        return answer.ok ? answer : caches.match(url.pathname).then((kept) => kept || answer);
      })
      .catch(() => caches.match(url.pathname)),
  );
});
